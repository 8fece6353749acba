import asyncio
import logging
from dataclasses import dataclass

import pytest

from embedgrpc.server.telemetry.loop_lag import LoopLag


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


async def turn() -> None:
    """Let the loop take two turns."""
    for _ in range(2):
        await asyncio.sleep(0)


async def test_lags_and_stalls_are_measured() -> None:
    """The longest lag is reported for a minute or two; lags of over 0.1 s count as stalls."""
    clock = Clock()
    async with LoopLag(interval_s=0, clock=clock) as lag:
        for seconds in (0.01, 0.25, 0.09, 0.15):
            clock.now += seconds
            await turn()
        assert lag.longest_s == pytest.approx(0.25)
        assert lag.stalls == 2
        readings = {one.metric: one.value for one in lag.read()}
        assert readings["embedgrpc.event_loop.lag"] == pytest.approx(0.25)
        assert readings["embedgrpc.event_loop.stalls"] == 2
        lag.forget()
        assert lag.longest_s == 0
    clock.now += 5
    await turn()
    assert lag.longest_s == 0


async def test_the_longest_lag_is_that_of_the_last_minutes() -> None:
    """Older lags are forgotten."""
    clock = Clock()
    async with LoopLag(interval_s=0, clock=clock) as lag:
        clock.now += 3
        await turn()
        for expected in (3.0, 3.0, 3.0, 0.5, 0.5):
            for _ in range(61):
                clock.now += 0.5
                await turn()
            assert lag.longest_s == pytest.approx(expected)


async def test_stalls_are_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    """The first stall is logged at once, those of the next ten seconds together, and none twice."""
    clock = Clock()
    async with LoopLag(interval_s=0, clock=clock) as lag:
        for seconds in (0.2, *[0.3] * 5, 0.15, 20, *[0.01] * 5):
            clock.now += seconds
            await turn()
        lag.warns = False
        clock.now += 30
        await turn()
    logged = [(record.times, record.longest_ms) for record in caplog.records]  # type: ignore[attr-defined]  # extra
    assert logged == [(1, 200), (7, 20_000)]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


async def test_a_busy_loop_is_late() -> None:
    """Work on the loop shows on the real clock, too."""
    async with LoopLag(interval_s=0.001) as lag:
        await asyncio.sleep(0.01)
        _ = sum(range(3_000_000))
        await asyncio.sleep(0.01)
        assert lag.longest_s > 0.005
