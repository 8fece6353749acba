"""What `benchmarks.peers` measures of a contender."""

from dataclasses import dataclass, field


@dataclass
class Times:
    """How one contender did one kind of work, in each round.

    Attributes:
        speeds: Texts per second of a list, or the median of lone calls in seconds.
        cpu_s: The CPU seconds of a text.
    """

    speeds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
