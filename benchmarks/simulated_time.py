"""Time that stands still between events, so that hours take as long as what happens in them."""

import heapq
import math
from collections.abc import Callable
from itertools import count


class VirtualTime:
    """A clock and what is to happen; of events at the same time the first planned comes first.

    Attributes:
        now_s: The time.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def read(self) -> float:
        """Returns the time, as `time.monotonic` does."""
        return self.now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Plans something; what should have been already happens next."""
        heapq.heappush(self._events, (max(when_s, self.now_s), next(self._numbers), action))

    def run(self, until_s: float = math.inf) -> None:
        """Lets everything happen that is planned up to a time, in order."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._events)
            action()
