"""Measures how late the event loop is: everything that holds it up delays every call.

A timer records how much later than due it runs. The longest lag of the last minute is a metric. A
lag of over a tenth of a second is a stall, which is logged at most every ten seconds.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Self

from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

_INTERVAL_S = 0.05
_WINDOW_S = 60.0
# From here on, callers notice.
_STALL_S = 0.1
# The least time between two lines in the log.
_LOG_INTERVAL_S = 10.0


class LoopLag:
    """Watches the running event loop, from `__aenter__` to `__aexit__`.

    Args:
        interval_s: Time between two measurements; 0 measures once in every turn of the loop,
            which keeps a core busy.
        clock: Returns seconds. With `time.thread_time` and an interval of 0, the lag is the CPU
            time of a turn, whatever else the machine does.

    Attributes:
        stalls: How often the loop was late by more than a tenth of a second.
        warns: Whether to log stalls. Not while models load: their libraries hold the interpreter
            lock.
    """

    def __init__(
        self, *, interval_s: float = _INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stalls = 0
        self.warns = True
        self._interval_s = interval_s
        self._clock = clock
        self._due_s = 0.0
        self._longest_s = 0.0
        self._longest_before_s = 0.0
        self._window_began_s = 0.0
        self._logged_s = -_LOG_INTERVAL_S
        self._unlogged = 0
        self._longest_unlogged_s = 0.0
        self._timer: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        self._due_s = self._window_began_s = self._clock()
        self._measure()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def longest_s(self) -> float:
        """The longest lag of the last minute or two, in seconds."""
        return max(self._longest_s, self._longest_before_s)

    def forget(self) -> None:
        """Reset the longest lag. On the event loop."""
        self._longest_s = self._longest_before_s = 0.0

    def read(self) -> Iterator[Reading]:
        """Return the metrics. From any thread."""
        yield Reading("embedgrpc.event_loop.lag", self.longest_s, {})
        yield Reading("embedgrpc.event_loop.stalls", self.stalls, {})

    def _measure(self) -> None:
        now = self._clock()
        self._note(max(now - self._due_s, 0), now)
        self._due_s = now + self._interval_s
        loop = asyncio.get_running_loop()
        if self._interval_s:
            self._timer = loop.call_later(self._interval_s, self._measure)
        else:
            self._timer = loop.call_soon(self._measure)

    def _note(self, lag_s: float, now: float) -> None:
        if now - self._window_began_s >= _WINDOW_S:
            self._longest_before_s, self._longest_s = self._longest_s, 0.0
            self._window_began_s = now
        self._longest_s = max(self._longest_s, lag_s)
        if lag_s <= _STALL_S and not self._unlogged:
            return
        if lag_s > _STALL_S:
            self.stalls += 1
            if not self.warns:
                return
            self._unlogged += 1
            self._longest_unlogged_s = max(self._longest_unlogged_s, lag_s)
        if self._unlogged and now - self._logged_s >= _LOG_INTERVAL_S:
            _logger.warning(
                "event loop held up",
                extra={
                    "times": self._unlogged,
                    "longest_ms": round(self._longest_unlogged_s * 1e3),
                },
            )
            self._unlogged, self._longest_unlogged_s, self._logged_s = 0, 0.0, now
