"""Measures how late the event loop is: whatever holds it up holds up every call.

A timer is due again and again, and notes how much later than that it runs. The longest of the last
minute is a metric; what is longer than a tenth of a second is a line in the log, now and then.
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
# From here on callers notice.
_STALL_S = 0.1
# Between two lines in the log.
_QUIET_S = 10.0


class LoopLag:
    """Watches the event loop that it is entered on, until it is left.

    Args:
        interval_s: Time between two looks; 0 looks once in every turn of the loop, which keeps a
            core busy.
        clock: Tells the time, in seconds. With `time.thread_time` and an interval of 0 the lag is
            how long a turn works, whatever else the machine does.

    Attributes:
        stalls: How often it was late by more than a tenth of a second.
        warns: Whether that is worth a warning. While models are loaded it is not: their libraries
            hold the interpreter.
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
        self._told_s = -_QUIET_S
        self._untold = 0
        self._longest_untold_s = 0.0
        self._timer: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        self._due_s = self._window_began_s = self._clock()
        self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def longest_s(self) -> float:
        """The longest lag of the last minute or two, in seconds."""
        return max(self._longest_s, self._longest_before_s)

    def forget(self) -> None:
        """Begins anew. On the event loop."""
        self._longest_s = self._longest_before_s = 0.0

    def read(self) -> Iterator[Reading]:
        """Tells the metrics. From any thread."""
        yield Reading("embedgrpc.event_loop.lag", self.longest_s, {})
        yield Reading("embedgrpc.event_loop.stalls", self.stalls, {})

    def _look(self) -> None:
        now = self._clock()
        self._note(max(now - self._due_s, 0), now)
        self._due_s = now + self._interval_s
        loop = asyncio.get_running_loop()
        if self._interval_s:
            self._timer = loop.call_later(self._interval_s, self._look)
        else:
            self._timer = loop.call_soon(self._look)

    def _note(self, lag_s: float, now: float) -> None:
        if now - self._window_began_s >= _WINDOW_S:
            self._longest_before_s, self._longest_s = self._longest_s, 0.0
            self._window_began_s = now
        self._longest_s = max(self._longest_s, lag_s)
        if lag_s <= _STALL_S and not self._untold:
            return
        if lag_s > _STALL_S:
            self.stalls += 1
            if not self.warns:
                return
            self._untold += 1
            self._longest_untold_s = max(self._longest_untold_s, lag_s)
        if self._untold and now - self._told_s >= _QUIET_S:
            _logger.warning(
                "event loop held up",
                extra={
                    "times": self._untold,
                    "longest_ms": round(self._longest_untold_s * 1e3),
                },
            )
            self._untold, self._longest_untold_s, self._told_s = 0, 0.0, now
