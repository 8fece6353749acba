"""The limits of the child process that validates a model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """The limits of the child process that validates a model.

    Attributes:
        timeout_s: Downloads do not count.
        memory_bytes: 0 derives the limit from the size of the weights.
    """

    timeout_s: float
    memory_bytes: int
