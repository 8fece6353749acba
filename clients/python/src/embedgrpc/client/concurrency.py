"""How many calls may be in flight on one connection. No I/O.

HTTP/2 servers, and the proxies before them, take only so many calls at once on a connection and
refuse more. gRPC's core means to wait for its turn, but loses calls in a burst; so the calls of a
client wait here, in the order in which they came.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

DEFAULT_CONCURRENT_CALLS: Final = 100  # what Envoy and many others allow

_RECOVERY_S: Final = 60.0
# HTTP/2's REFUSED_STREAM: the server has not looked at the call.
_REFUSED: Final = "RST_STREAM with error code 7"


class Slot:
    """A place among the calls in flight, or in the line for one.

    Args:
        wake: Called once the call may begin, from the thread that ends another.

    Attributes:
        granted: Whether the call may begin.
    """

    __slots__ = ("granted", "left", "round", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.granted = False
        self.left = False
        self.round = 0


class ConcurrencyLimit:
    """The calls of a client that are in flight, and the line of those that wait.

    Threads may share it.

    Args:
        max_calls: The most calls in flight.
        clock: Tells the time in seconds.

    Raises:
        ValueError: The number is below 1.
    """

    def __init__(self, max_calls: int, clock: Callable[[], float] = time.monotonic) -> None:
        if max_calls < 1:
            raise ValueError(f"max_concurrent_calls is {max_calls}; it must be at least 1")
        self.max_calls: Final = max_calls
        self._clock = clock
        # A stream that is collected ends its call, and that may happen while the lock is held.
        self._lock = threading.RLock()
        self._limit = max_calls
        self._lowered_at = 0.0
        self._round = 0
        self._count = 0
        self._line: deque[Slot] = deque()

    @property
    def limit(self) -> int:
        """The most calls in flight now: lower for a while after the server refused some."""
        return self._limit

    def acquire(self, wake: Callable[[], None]) -> Slot:
        """Asks for a slot.

        Args:
            wake: Called once the call may begin; not where it may at once.

        Returns:
            The place; to be left in any case.
        """
        slot = Slot(wake)
        with self._lock:
            self._line.append(slot)
            self._grant(but=slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a place back, or leaves the line. Safe to repeat."""
        with self._lock:
            if slot.left:
                return
            slot.left = True
            if slot.granted:
                self._count -= 1
            else:
                self._line.remove(slot)
            self._grant()

    def lower(self, slot: Slot) -> None:
        """Lowers the limit, as the server refused the call that had this slot.

        Args:
            slot: The slot. What was sent before the last lowering does not count again.
        """
        with self._lock:
            if slot.round == self._round:
                self._limit = max(1, min(self._limit, self._count) // 2)
                self._round += 1
                self._lowered_at = self._clock()

    def _grant(self, but: Slot | None = None) -> None:
        if self._limit < self.max_calls and self._clock() - self._lowered_at >= _RECOVERY_S:
            self._limit = min(self._limit * 2, self.max_calls)
            self._lowered_at = self._clock()
        while self._line and self._count < self._limit:
            slot = self._line.popleft()
            slot.granted = True
            slot.round = self._round
            self._count += 1
            if slot is not but:
                slot.wake()


def is_refused(failure: Any) -> bool:
    """Whether a server refused a call because there were too many on the connection.

    Args:
        failure: The `grpc.RpcError` that the call raised.
    """
    return _REFUSED in (failure.details() or "")
