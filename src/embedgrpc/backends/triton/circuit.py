"""Decides whether an endpoint is called, and when it is looked at again."""

import math
from collections.abc import Callable

# So many calls that fail or do not end, one after the other, and no other call gets there.
FAILURES_MAX = 5
# Likewise looks, which take no time where anybody is well enough to answer them.
SILENT_LOOKS_MAX = 2
# Between two looks at an endpoint that is not called, growing from the one to the other.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 1.0
# Between two looks at one that is called: it may go away while nobody calls.
_WATCH_S = 2.0
# Waits differ by this part of theirs, so that many clients do not look in the same moment.
_JITTER = 0.25


class Circuit:
    """The circuit breaker of one endpoint: closed while it is called, open while it is not.

    It opens when the endpoint is lost or fails again and again, and closes when a look at it
    found it well; a call that ends well on an open circuit began before, and says nothing.

    Args:
        clock: Tells the time, in seconds.
        random: Gives a number from 0 to 1, to spread looks in time.
    """

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._failures = 0
        self._silent_looks = 0
        self._wait_s = _FIRST_WAIT_S
        self._closed = True
        self._due_at = -math.inf
        self._plan(_WATCH_S)

    @property
    def closed(self) -> bool:
        """Whether the endpoint is to be called."""
        return self._closed

    @property
    def due_at(self) -> float:
        """When to look at the endpoint next, on the clock."""
        return self._due_at

    def succeed(self) -> None:
        """Takes a call that ended well."""
        self._failures = self._silent_looks = 0

    def fail(self) -> None:
        """Takes a call that failed, or did not end in time: reason enough for a look at once."""
        self.doubt()
        if self._closed:
            self._failures += 1
        if self._failures >= FAILURES_MAX:
            self.lose()

    def doubt(self) -> None:
        """Takes a reason to look at it at once, which proves nothing."""
        if self._closed:
            self._due_at = min(self._due_at, self._clock())

    def lose(self) -> None:
        """Takes that the endpoint, or its model, is not there."""
        if self._closed:
            self._closed = False
            self._wait_s = _FIRST_WAIT_S
            self._plan(self._wait_s)

    def find_well(self) -> None:
        """Takes a look that found the endpoint well."""
        if not self._closed:
            self._closed = True
            self._failures = 0
        self._silent_looks = 0
        self._plan(_WATCH_S)

    def find_ill(self, *, lost: bool) -> None:
        """Takes a look that failed.

        Args:
            lost: Whether nothing is there, rather than that it took too long.
        """
        if self._closed:
            self._silent_looks += 1
            self._plan(_FIRST_WAIT_S)
            if lost or self._silent_looks >= SILENT_LOOKS_MAX:
                self.lose()
        else:
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
            self._plan(self._wait_s)

    def _plan(self, wait_s: float) -> None:
        spread = 1 - _JITTER * self._random()
        self._due_at = self._clock() + wait_s * spread
