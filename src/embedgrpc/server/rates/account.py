"""The account of one caller: what it may still use of its limits."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from embedgrpc.engine.errors import RateLimitedError
from embedgrpc.server.rates.bucket import Bucket
from embedgrpc.server.rates.durations import duration
from embedgrpc.server.rates.limits import RateLimits
from embedgrpc.server.rates.refusals import Limit, rate_limited
from embedgrpc.server.rates.totals import RateTotals

# Streams leave this share to the other calls of their caller: else one stream would use all.
_LEFT_BY_STREAMS: Final = 0.25
# As in admission: a high estimate would refuse what fits, and the real count replaces it.
_BYTES_PER_TOKEN: Final = 4
# The limits may change while a stream waits.
_NAP_S_MAX: Final = 30.0
# When a call ends is not known.
_CALLS_RETRY_DELAY_S: Final = 1.0

_NAMES: Final = tuple(
    tuple(f"x-ratelimit-{figure}-{unit}" for figure in ("limit", "remaining", "reset"))
    for unit in ("requests", "tokens")
)

Sleep = Callable[[float], Awaitable[None]]


def estimate_tokens(size_bytes: int) -> int:
    """Return about how many tokens a message has, before it is parsed."""
    return size_bytes // _BYTES_PER_TOKEN


class Account:
    """What one caller may still use. For one event loop.

    Args:
        name: The caller.
        limits: Its limits.
        totals: Counts what becomes of calls.
        clock: Returns the time in seconds; monotonic.
        sleep: Sleeps so many seconds.

    Attributes:
        name: See above.
        limits: See above.
        open_calls: Its open calls.
        was_used: Whether a call came since it was last considered to be forgotten.
    """

    __slots__ = (
        "_clock",
        "_figures",
        "_requests",
        "_sleep",
        "_tokens",
        "_totals",
        "_turns",
        "limits",
        "name",
        "open_calls",
        "was_used",
    )

    def __init__(
        self,
        name: str,
        limits: RateLimits,
        totals: RateTotals,
        *,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.name = name
        self._totals = totals
        self.open_calls = 0
        self.was_used = False
        self._clock = clock
        self._sleep = sleep
        # The streams of the caller take turns, in the order in which they came.
        self._turns: asyncio.Lock | None = None
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.set_limits(limits)

    @property
    def counts_tokens(self) -> bool:
        """Whether its tokens are limited."""
        return self._tokens is not None

    def set_limits(self, limits: RateLimits) -> None:
        """Set the limits; what has been used stays used."""
        self.limits = limits
        now = self._clock()
        self._requests = _changed(
            self._requests, limits.request_capacity, limits.requests_per_s, now
        )
        self._tokens = _changed(self._tokens, limits.token_capacity, limits.tokens_per_s, now)
        # Every call asks for them: what does not change is made here.
        self._figures = tuple(
            (bucket, (limit, str(int(bucket.capacity))), remaining, reset)
            for bucket, (limit, remaining, reset) in zip(
                (self._requests, self._tokens), _NAMES, strict=True
            )
            if bucket is not None
        )

    def count_call(self) -> None:
        """Check the open calls.

        Raises:
            RateLimitedError: The caller has too many.
        """
        if self.limits.calls and self.open_calls > self.limits.calls:
            raise self._refuse(Limit.CALLS, _CALLS_RETRY_DELAY_S)

    def take_request(self, *, has_tokens: bool) -> None:
        """Count a request, whose call is open.

        Args:
            has_tokens: Whether a model may read what is in its message.

        Raises:
            RateLimitedError: It is one too many, or the caller has used its tokens, or has too many
                open calls.
        """
        now = self._clock()
        if self._requests is not None and not self._requests.try_take(1, now):
            raise self._refuse(Limit.REQUESTS, self._requests.wait_s(1, now))
        # A message that would be refused need not be received.
        if has_tokens and self._tokens is not None and not self._tokens.has(1, now):
            raise self._refuse(Limit.TOKENS, self._tokens.wait_s(1, now))
        self.count_call()

    def leave(self) -> None:
        """Record that a call has ended."""
        self.open_calls -= 1

    def hold(self, tokens: int) -> None:
        """Take the estimated tokens of a request.

        Raises:
            RateLimitedError: The caller has not so many left, and has used some.
        """
        if self._tokens is not None:
            now = self._clock()
            if not self._tokens.try_take(tokens, now):
                raise self._refuse(Limit.TOKENS, self._tokens.wait_s(tokens, now), tokens=tokens)

    def force(self, tokens: int) -> None:
        """Take the estimated tokens of a message that has been received in any case."""
        if self._tokens is not None:
            self._tokens.take(tokens, self._clock())

    def release(self, tokens: int) -> None:
        """Give back the estimated tokens of a message; what it used has been taken by `spend`."""
        if self._tokens is not None:
            self._tokens.give_back(tokens, self._clock())

    def spend(self, tokens: int) -> None:
        """Take tokens that were used; see `embedgrpc.engine.work.Meter`."""
        if self._tokens is not None:
            self._tokens.take(tokens, self._clock())

    async def wait_for_turn(self, *, has_tokens: bool) -> None:
        """Wait until a stream may read its next message, and count it as a request.

        Args:
            has_tokens: Whether a model may read what is in it.
        """
        if self._turns is None:
            self._turns = asyncio.Lock()
        async with self._turns:
            while wait_s := self.stream_wait_s(has_tokens=has_tokens):
                began = self._clock()
                await self._sleep(min(wait_s, _NAP_S_MAX))
                self._totals.waited_s += self._clock() - began
            if self._requests is not None:
                self._requests.take(1, self._clock())

    def refuse_stream(self, *, has_tokens: bool) -> RateLimitedError:
        """Return the error of a stream that waited too long for its turn."""
        now = self._clock()
        of_requests = _wait_s(self._requests, 1, now)
        of_tokens = _wait_s(self._tokens, 0, now) if has_tokens else 0
        limit = Limit.TOKENS if of_tokens > of_requests else Limit.REQUESTS
        return self._refuse(limit, max(of_requests, of_tokens))

    def figures(self) -> tuple[tuple[str, str], ...]:
        """Return its limits and what is left of them, under OpenAI's names.

        Source: OpenAI, "Rate limits", "Rate limits in headers".
        """
        now = self._clock()
        figures: tuple[tuple[str, str], ...] = ()
        for bucket, limit, remaining, reset in self._figures:
            level = bucket.level(now)
            figures += (
                limit,
                (remaining, str(int(level)) if level > 0 else "0"),
                (reset, duration((bucket.capacity - level) / bucket.per_s)),
            )
        return figures

    def stream_wait_s(self, *, has_tokens: bool) -> float:
        """Return how long a stream would wait if it were alone, in seconds."""
        now = self._clock()
        of_requests = _wait_s(self._requests, 1, now)
        return max(of_requests, _wait_s(self._tokens, 0, now)) if has_tokens else of_requests

    def _refuse(self, limit: Limit, retry_delay_s: float, *, tokens: int = 0) -> RateLimitedError:
        self._totals.refusals[limit] += 1
        left = self._tokens.level(self._clock()) if self._tokens is not None and tokens else 0
        return rate_limited(
            limit,
            self.name,
            self.limits,
            retry_delay_s=retry_delay_s,
            tokens=tokens,
            tokens_left=max(math.floor(left), 0),
        )


def _changed(bucket: Bucket | None, capacity: float, per_s: float, now: float) -> Bucket | None:
    if not per_s:
        return None
    if bucket is None:
        return Bucket(capacity, per_s, now)
    bucket.change(capacity, per_s, now)
    return bucket


def _wait_s(bucket: Bucket | None, amount: float, now: float) -> float:
    """Return how long a stream waits for an amount beyond what it leaves to other calls."""
    if bucket is None:
        return 0.0
    return bucket.wait_s(amount + _LEFT_BY_STREAMS * bucket.capacity, now)
