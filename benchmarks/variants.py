"""Servers with different flags, measured in turns."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.figures import Figures
from benchmarks.processes import RunningServer


@dataclass
class Variant:
    """A server with its flags, and its figures.

    Attributes:
        name: The name in tables.
        served: The server.
        closed_rounds: Figures of each round by calls in flight, in closed loops.
        open_rounds: Figures of each round by load in percent, in open loops.
    """

    name: str
    served: RunningServer
    closed_rounds: dict[int, list[Figures]] = field(default_factory=lambda: defaultdict(list))
    open_rounds: dict[int, list[Figures]] = field(default_factory=lambda: defaultdict(list))

    @property
    def closed(self) -> dict[int, Figures]:
        """Medians by calls in flight."""
        return _medians(self.closed_rounds)

    @property
    def open(self) -> dict[int, Figures]:
        """Medians by load in percent."""
        return _medians(self.open_rounds)

    @property
    def capacity_per_s(self) -> float:
        """The best throughput of the closed loops."""
        return max(figures.throughput_per_s for figures in self.closed.values())


def _medians(rounds: Mapping[int, list[Figures]]) -> dict[int, Figures]:
    return {point: Figures.median(figures) for point, figures in rounds.items()}
