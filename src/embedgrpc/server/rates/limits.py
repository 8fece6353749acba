"""What one caller may use."""

from dataclasses import dataclass
from functools import lru_cache

from embedgrpc.server.caller import CallerLimits
from embedgrpc.server.settings.settings import Settings

_MINUTE_S = 60
_KNOWN_LIMITS_MAX = 4096


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits of a caller; 0 for none.

    Attributes:
        requests_per_s: Requests in a second, on average.
        request_burst: Requests at once; 0 for those of a second, but at least one.
        tokens_per_min: Tokens of inputs in a minute, on average.
        token_burst: Tokens at once; 0 for those of a minute.
        calls: Open calls.
    """

    requests_per_s: float = 0
    request_burst: int = 0
    tokens_per_min: int = 0
    token_burst: int = 0
    calls: int = 0

    @property
    def request_capacity(self) -> float:
        """The most requests at once."""
        return self.request_burst or max(self.requests_per_s, 1)

    @property
    def token_capacity(self) -> int:
        """The most tokens at once."""
        return self.token_burst or self.tokens_per_min

    @property
    def tokens_per_s(self) -> float:
        """The same as `tokens_per_min`, for a second."""
        return self.tokens_per_min / _MINUTE_S

    def __bool__(self) -> bool:
        """Whether there is a limit."""
        return bool(self.requests_per_s or self.tokens_per_min or self.calls)


def default_limits(settings: Settings) -> RateLimits:
    """Return the limits of callers that have none of their own."""
    return RateLimits(
        requests_per_s=settings.requests_per_s,
        request_burst=settings.request_burst,
        tokens_per_min=settings.tokens_per_min,
        token_burst=settings.token_burst,
        calls=settings.max_calls_per_caller,
    )


@lru_cache(_KNOWN_LIMITS_MAX)
def merge(limits: RateLimits, own: CallerLimits) -> RateLimits:
    """Return the limits of a caller that has some of its own.

    Its own rate comes with its own burst: that of the server belongs to another rate.
    """
    requests_per_s, request_burst = limits.requests_per_s, limits.request_burst
    if own.requests_per_s is not None:
        requests_per_s, request_burst = own.requests_per_s, 0
    tokens_per_min, token_burst = limits.tokens_per_min, limits.token_burst
    if own.tokens_per_min is not None:
        tokens_per_min, token_burst = own.tokens_per_min, 0
    return RateLimits(
        requests_per_s=requests_per_s,
        request_burst=request_burst if own.request_burst is None else own.request_burst,
        tokens_per_min=tokens_per_min,
        token_burst=token_burst if own.token_burst is None else own.token_burst,
        calls=limits.calls if own.max_calls is None else own.max_calls,
    )
