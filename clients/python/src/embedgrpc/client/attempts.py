"""Further attempts at calls that the server did not process.

It refused them because the connection had too many, or because it is overloaded. gRPC's service
config cannot retry RESOURCE_EXHAUSTED: gRPC's core answers a message that is too large with the
same status, and would send it again. So these attempts are made here.
"""

import random
import threading
import time
from typing import Any, Final

from embedgrpc.client.concurrency import ConcurrencyLimit, Slot, is_refused
from embedgrpc.client.errors import DeadlineExpiredError, EmbedGrpcError
from embedgrpc.client.status_errors import overload_delay_s

# The delay before the next attempt doubles from the first to the second.
_DELAY_S = 0.02
_DELAY_S_MAX = 1.0
_OVERLOAD_DELAY_S = 0.1
_RECONNECT_DELAY_S = 0.2
_RECONNECT_DELAY_S_MAX = 5.0
# As in `service_config.json`.
_OVERLOADED_ATTEMPTS_MAX: Final = 3
_TOKENS_MAX: Final = 100.0
_TOKENS_PER_SUCCESS: Final = 0.1


class RetryBudget:
    """The retries of overloaded calls that a client may make: few while most calls fail.

    Source: gRFC A6, retry throttling.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = _TOKENS_MAX

    def add_success(self) -> None:
        """Record a call that succeeded."""
        if self._tokens < _TOKENS_MAX:
            with self._lock:
                self._tokens = min(self._tokens + _TOKENS_PER_SUCCESS, _TOKENS_MAX)

    def add_failure(self) -> bool:
        """Record an overloaded call; return whether it may be retried."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0.0)
            return self._tokens > _TOKENS_MAX / 2


class Attempts:
    """The attempts at one call, and the time that is left for them.

    Args:
        concurrency: The limit of the client.
        budget: The retries of the client.
        timeout_s: The time for all attempts, in seconds.
    """

    def __init__(
        self, concurrency: ConcurrencyLimit, budget: RetryBudget, timeout_s: float
    ) -> None:
        self._concurrency = concurrency
        self._budget = budget
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._delay_s = _DELAY_S
        self._overload_count = 0

    def left_s(self) -> float:
        """Return the time that is left, in seconds.

        Raises:
            DeadlineExpiredError: No time is left.
        """
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise DeadlineExpiredError(
                f"the call waited {self._timeout_s:g} s for other calls of this client to end:"
                f" {self._concurrency.limit} may be in flight at once (max_concurrent_calls is"
                f" {self._concurrency.max_calls})",
                reason="",
            )
        return left_s

    def delay_s(self, failure: Any, slot: Slot) -> float | None:
        """Return the wait before the next attempt, in seconds.

        Lower the limit of the client if the connection had too many calls.

        Args:
            failure: The `grpc.RpcError` that the call raised.
            slot: The slot of the call.

        Returns:
            The wait; None where a retry does not help, or no time is left.
        """
        if is_refused(failure):
            self._concurrency.lower(slot)
            return self.next_delay_s()
        delay_s = overload_delay_s(failure, default_s=_OVERLOAD_DELAY_S * 2**self._overload_count)
        if delay_s is None:
            return None
        self._overload_count += 1
        if not self._budget.add_failure() or self._overload_count == _OVERLOADED_ATTEMPTS_MAX:
            return None
        return self._in_time(delay_s)

    def next_delay_s(self) -> float | None:
        """Return the wait before the next attempt, in seconds; None where no time is left."""
        delay_s = self._delay_s * random.uniform(0.5, 1)  # noqa: S311 -- not a secret
        self._delay_s = min(self._delay_s * 2, _DELAY_S_MAX)
        return self._in_time(delay_s)

    def succeed(self) -> None:
        """Record that the call succeeded."""
        self._budget.add_success()

    def _in_time(self, delay_s: float) -> float | None:
        return delay_s if time.monotonic() + delay_s < self._until else None


class Reconnects:
    """The attempts to go on with a stream whose call ended early.

    Args:
        patience_s: How long to go on without a result, in seconds; 0 for no attempt.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._until: float | None = None
        self._delay_s = _RECONNECT_DELAY_S

    def delay_s(self, failure: EmbedGrpcError) -> float | None:
        """Return the wait before the next attempt, in seconds; None if there is none.

        Args:
            failure: The error of the call that ended.
        """
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._patience_s
        # Clients that lost the same server do not come back at the same moment.
        delay_s = self._delay_s * random.uniform(0.5, 1)  # noqa: S311 -- not a secret
        self._delay_s = min(self._delay_s * 2, _RECONNECT_DELAY_S_MAX)
        delay_s = max(delay_s, failure.retry_delay_s or 0.0)
        return delay_s if now + delay_s < self._until else None

    def succeed(self) -> None:
        """Record a result: the next failure has the whole time again."""
        self._until = None
        self._delay_s = _RECONNECT_DELAY_S
