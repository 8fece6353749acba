"""The two classes of work."""

from enum import IntEnum


class WorkClass(IntEnum):
    """How soon somebody needs the answer."""

    INTERACTIVE = 0
    BULK = 1
