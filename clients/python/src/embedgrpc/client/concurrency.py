"""The limit of calls in flight on one connection. No I/O.

HTTP/2 servers and proxies limit the calls on a connection and refuse more. gRPC's core queues
calls over the limit, but loses some in a burst. So a client queues its calls here, first come,
first served.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

_RECOVERY_S: Final = 60.0
# HTTP/2's REFUSED_STREAM: the server has not processed the call.
_REFUSED: Final = "RST_STREAM with error code 7"


class Slot:
    """A slot for one call, or its place in the queue.

    Args:
        wake: Called when the call may start, from the thread that ends another call.

    Attributes:
        granted: Whether the call may start.
    """

    __slots__ = ("__weakref__", "granted", "lowerings", "released", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.granted = False
        self.released = False
        self.lowerings = 0


class ConcurrencyLimit:
    """The calls of a client that are in flight, and the queue for a slot. Thread-safe.

    Args:
        max_calls: The limit of calls in flight.
        clock: Returns the time in seconds.

    Raises:
        ValueError: The number is below 1.
    """

    def __init__(self, max_calls: int, clock: Callable[[], float] = time.monotonic) -> None:
        if max_calls < 1:
            raise ValueError(f"max_concurrent_calls is {max_calls}; it must be at least 1")
        self.max_calls: Final = max_calls
        self._clock = clock
        # Reentrant: a stream may be garbage collected, and so end its call, under the lock.
        self._lock = threading.RLock()
        self._limit = max_calls
        self._lowered_at = 0.0
        self._lowerings = 0
        self._count = 0
        self._queue: deque[Slot] = deque()

    @property
    def limit(self) -> int:
        """The current limit: lower for a while after the server refused calls."""
        return self._limit

    def acquire(self, wake: Callable[[], None]) -> Slot:
        """Return a slot; release it whether or not it was granted.

        Args:
            wake: Called when the call may start; not called if it may start at once.
        """
        slot = Slot(wake)
        with self._lock:
            self._queue.append(slot)
            self._grant(but=slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Return a slot, or leave the queue. Safe to repeat."""
        with self._lock:
            if slot.released:
                return
            slot.released = True
            if slot.granted:
                self._count -= 1
            else:
                self._queue.remove(slot)
            self._grant()

    def lower(self, slot: Slot) -> None:
        """Lower the limit, because the server refused the call in this slot.

        A call that started before the limit was last lowered does not lower it again.
        """
        with self._lock:
            if slot.lowerings == self._lowerings:
                self._limit = max(1, min(self._limit, self._count) // 2)
                self._lowerings += 1
                self._lowered_at = self._clock()

    def _grant(self, but: Slot | None = None) -> None:
        if self._limit < self.max_calls and self._clock() - self._lowered_at >= _RECOVERY_S:
            self._limit = min(self._limit * 2, self.max_calls)
            self._lowered_at = self._clock()
        while self._queue and self._count < self._limit:
            slot = self._queue.popleft()
            slot.granted = True
            slot.lowerings = self._lowerings
            self._count += 1
            if slot is not but:
                slot.wake()


def is_refused(failure: Any) -> bool:
    """Return whether the server refused a call because the connection had too many."""
    return _REFUSED in (failure.details() or "")
