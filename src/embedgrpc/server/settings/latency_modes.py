"""What each latency mode makes of the threads that run a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

LatencyMode = Literal["efficient", "balanced", "fastest"]


@dataclass(frozen=True, slots=True)
class BatchThreads:
    """How the threads of a batch wait, and where they run.

    Attributes:
        spin_duration_us: How long one spins while it waits for work, before it sleeps.
        pin_threads: Whether those of a single text that runs alone have cores of their own.
    """

    spin_duration_us: int
    pin_threads: bool


LATENCY_MODES: Final[Mapping[LatencyMode, BatchThreads]] = {
    "efficient": BatchThreads(spin_duration_us=0, pin_threads=False),
    "balanced": BatchThreads(spin_duration_us=100, pin_threads=True),
    # About as long as ONNX Runtime spins by default. After the last call, they sleep.
    "fastest": BatchThreads(spin_duration_us=20_000, pin_threads=True),
}
