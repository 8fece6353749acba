"""What the log must know of the running call. It imports nothing, so the log starts at once."""

from contextvars import ContextVar
from typing import Final, Protocol


class Traced(Protocol):
    """Something with a trace."""

    def trace_fields(self) -> dict[str, str]:
        """Return the ids of its trace and span, as fields of a log line."""
        ...


RUNNING: Final[ContextVar[Traced | None]] = ContextVar("running_call", default=None)
