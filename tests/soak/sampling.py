"""The memory, threads and descriptors of a process over time, and whether they grow."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """The memory, threads and descriptors of a process at one moment.

    Attributes:
        at_s: Seconds since the load began.
        rss_mb: Resident memory in MB.
        threads: Threads.
        descriptors: Open file descriptors.
    """

    at_s: float
    rss_mb: float
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through resident memory, by least squares.

    Attributes:
        mb_per_h: Its slope.
        error_mb_per_h: The standard error of the slope.
    """

    mb_per_h: float
    error_mb_per_h: float


def sample(pid: int, began: float) -> Sample:
    """Read a sample from /proc."""
    folder = Path(f"/proc/{pid}")
    resident_pages = int((folder / "statm").read_text().split()[1])
    return Sample(
        at_s=time.monotonic() - began,
        rss_mb=resident_pages * 4096 / MB,
        threads=len(list((folder / "task").iterdir())),
        descriptors=len(list((folder / "fd").iterdir())),
    )


async def watch(pid: int, samples: list[Sample], *, interval_s: float) -> None:
    """Append a sample of a process now and then, until cancelled."""
    began = time.monotonic()
    while True:
        samples.append(sample(pid, began))
        await asyncio.sleep(interval_s)


def trend(samples: Sequence[Sample]) -> Trend:
    """Fit a line through the resident memory of at least three samples."""
    hours = np.array([one.at_s for one in samples]) / 3600
    rss_mb = np.array([one.rss_mb for one in samples])
    hours = hours - hours.mean()
    slope = float(hours @ rss_mb / (hours @ hours))
    residuals = rss_mb - rss_mb.mean() - slope * hours
    variance = float(residuals @ residuals) / (len(samples) - 2)
    return Trend(mb_per_h=slope, error_mb_per_h=float(np.sqrt(variance / (hours @ hours))))
