"""Further attempts at calls that the server refused because the connection had too many."""

import random
import time
from typing import Any

from embedgrpc.client.concurrency import ConcurrencyLimit, Slot, is_refused
from embedgrpc.client.errors import DeadlineExpiredError

# The delay before the next attempt doubles from the first to the second.
_DELAY_S = 0.02
_DELAY_S_MAX = 1.0


class Attempts:
    """The attempts at one call, and the time that is left for them.

    The server has not processed a refused call, so it is safe to make it again.

    Args:
        concurrency: The limit of the client.
        timeout_s: The time for all attempts, in seconds.
    """

    def __init__(self, concurrency: ConcurrencyLimit, timeout_s: float) -> None:
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._delay_s = _DELAY_S

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
        """Return the wait before the next attempt, in seconds; lower the limit of the client.

        Args:
            failure: The `grpc.RpcError` that the call raised.
            slot: The slot of the call.

        Returns:
            The wait; None where the call was not refused, or no time is left.
        """
        if not is_refused(failure):
            return None
        self._concurrency.lower(slot)
        return self.next_delay_s()

    def next_delay_s(self) -> float | None:
        """Return the wait before the next attempt, in seconds; None where no time is left."""
        delay_s = self._delay_s * random.uniform(0.5, 1)  # noqa: S311 -- not a secret
        self._delay_s = min(self._delay_s * 2, _DELAY_S_MAX)
        return delay_s if time.monotonic() + delay_s < self._until else None
