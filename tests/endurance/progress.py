"""How a run goes on, and the memory that it takes."""

import asyncio
import gc
import os
import time
from pathlib import Path

from tests.endurance.plan import Plan
from tests.endurance.trial import Trial

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_S = 0.2
_MIDDLE = 0.5
_REPORTS = 20


def rss_mb() -> float:
    """Return the resident memory of this process in MB, after a garbage collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


class Progress:
    """Prints the progress at intervals, and records the memory in the middle.

    Attributes:
        rss_in_the_middle_mb: The memory when half of the texts had been sent, or half of the
            time was over; None before.
    """

    def __init__(self, plan: Plan, trial: Trial) -> None:
        self.rss_in_the_middle_mb: float | None = None
        self._plan = plan
        self._trial = trial
        self._began = time.monotonic()

    async def watch(self) -> None:
        """Run until cancelled."""
        told = 0
        while True:
            seconds = time.monotonic() - self._began
            done = max(self._trial.sent / self._plan.items, seconds / self._plan.seconds_max)
            if done >= _MIDDLE and self.rss_in_the_middle_mb is None:
                self.rss_in_the_middle_mb = rss_mb()
            if done * _REPORTS >= told:
                told = int(done * _REPORTS) + 1
                outcomes = ", ".join(f"{n} {name}" for name, n in self._trial.outcomes.items())
                self._plan.progress(
                    f"{seconds:6.0f} s, {self._trial.sent} sent: {outcomes}; {rss_mb():.0f} MB"
                )
            await asyncio.sleep(_TICK_S)
