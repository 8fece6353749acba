"""Virtual time: it jumps from event to event, so idle hours take no time."""

import heapq
import math
from collections.abc import Callable
from itertools import count


class VirtualTime:
    """A clock and its events. Events at the same time run in the order of planning.

    Attributes:
        now_s: The time.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def read(self) -> float:
        """Return the time, like `time.monotonic`."""
        return self.now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Plan an event; one in the past runs next."""
        heapq.heappush(self._events, (max(when_s, self.now_s), next(self._numbers), action))

    def run(self, until_s: float = math.inf) -> None:
        """Run all events up to a time, in order."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._events)
            action()
