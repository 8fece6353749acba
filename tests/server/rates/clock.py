"""A clock that only tests move."""

import asyncio


class Clock:
    """A monotonic clock, and a sleep that moves it.

    Args:
        now: The time at the start, in seconds.

    Attributes:
        now: The time.
        slept: How long each sleep was.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Move the clock, and let others run."""
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
