"""The two classes of work, which the scheduler and admission treat differently."""

from enum import IntEnum


class WorkClass(IntEnum):
    """How soon results are needed: a user waits for INTERACTIVE work, BULK work can wait."""

    INTERACTIVE = 0
    BULK = 1
