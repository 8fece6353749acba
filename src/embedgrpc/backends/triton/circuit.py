"""Decides whether an endpoint is called, and when its health is checked next."""

import math
from collections.abc import Callable

# Consecutive calls that fail or time out until the circuit opens.
FAILURES_MAX = 5
# Consecutive health checks that time out until it opens; a healthy server answers them at once.
SILENT_CHECKS_MAX = 2
# Between two checks of an endpoint with an open circuit: the first wait, and the longest.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 1.0
# Between two checks of an endpoint with a closed circuit, which may go away between calls.
_WATCH_S = 2.0
# The largest random cut of a wait, as a fraction: many clients must not check at the same moment.
_JITTER = 0.25


class Circuit:
    """The circuit breaker of one endpoint: closed while the endpoint is called, open otherwise.

    It opens when the endpoint is lost or fails repeatedly, and closes after a successful health
    check. A call that succeeds on an open circuit began earlier, and does not close it.

    Args:
        clock: Returns the time, in seconds.
        random: Returns a number from 0 to 1, to spread checks in time.
    """

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._failures = 0
        self._silent_checks = 0
        self._wait_s = _FIRST_WAIT_S
        self._closed = True
        self._due_at = -math.inf
        self._plan(_WATCH_S)

    @property
    def closed(self) -> bool:
        """Whether the endpoint may be called."""
        return self._closed

    @property
    def due_at(self) -> float:
        """The time of the next health check, on the clock."""
        return self._due_at

    def succeed(self) -> None:
        """Record a call that succeeded."""
        self._failures = self._silent_checks = 0

    def fail(self) -> None:
        """Record a call that failed or timed out, and make a health check due."""
        self.doubt()
        if self._closed:
            self._failures += 1
        if self._failures >= FAILURES_MAX:
            self.lose()

    def doubt(self) -> None:
        """Make a health check due now, without counting a failure."""
        if self._closed:
            self._due_at = min(self._due_at, self._clock())

    def lose(self) -> None:
        """Record that the endpoint, or its model, is not there."""
        if self._closed:
            self._closed = False
            self._wait_s = _FIRST_WAIT_S
            self._plan(self._wait_s)

    def pass_check(self) -> None:
        """Record a health check that succeeded."""
        if not self._closed:
            self._closed = True
            self._failures = 0
        self._silent_checks = 0
        self._plan(_WATCH_S)

    def fail_check(self, *, lost: bool) -> None:
        """Record a health check that failed.

        Args:
            lost: Whether the endpoint or its model is not there; False for a timeout.
        """
        if self._closed:
            self._silent_checks += 1
            self._plan(_FIRST_WAIT_S)
            if lost or self._silent_checks >= SILENT_CHECKS_MAX:
                self.lose()
        else:
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
            self._plan(self._wait_s)

    def _plan(self, wait_s: float) -> None:
        spread = 1 - _JITTER * self._random()
        self._due_at = self._clock() + wait_s * spread
