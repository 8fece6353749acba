"""What a process may take that reads a model's files."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """What a child may take to read a model.

    Attributes:
        timeout_s: The longest, downloads left out.
        memory_bytes: The most memory; 0 to go by the size of the weights.
    """

    timeout_s: float
    memory_bytes: int
