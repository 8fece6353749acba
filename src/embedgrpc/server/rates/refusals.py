"""The errors of calls that exceed a limit of their caller."""

import random
from enum import StrEnum
from typing import Final

from embedgrpc.engine.errors import RateLimitedError
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.rates.limits import RateLimits

# Clients that were refused together do not come back together. Never sooner: that would fail.
_JITTER: Final = 0.2


class Limit(StrEnum):
    """What a caller has too much of; the value is the metric's attribute."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CALLS = "calls"


def rate_limited(
    limit: Limit,
    caller: str,
    limits: RateLimits,
    *,
    retry_delay_s: float,
    tokens: int = 0,
    tokens_left: int = 0,
) -> RateLimitedError:
    """Return the error of a call that exceeds a limit of its caller.

    Args:
        limit: The limit.
        caller: The caller's name.
        limits: Its limits.
        retry_delay_s: After how many seconds the call fits, if the caller uses nothing else.
        tokens: The estimated tokens of the call; 0 where its message was not received.
        tokens_left: What the caller has left of its tokens.
    """
    match limit:
        case Limit.REQUESTS:
            at_once = f"{limits.request_capacity:g}"
            per_s = f"{limits.requests_per_s:g}"
            message = f"too many requests: the limit is {per_s} per second, {at_once} at once"
            values = {"label": "REQUESTS_PER_SECOND", "limit": per_s, "burst": at_once}
        case Limit.TOKENS:
            per_min, at_once = str(limits.tokens_per_min), str(limits.token_capacity)
            message = f"too many tokens: the limit is {per_min} per minute, {at_once} at once"
            values = {"label": "TOKENS_PER_MINUTE", "limit": per_min, "burst": at_once}
            if tokens:
                message += f"; {tokens_left} are left, and this request has about {tokens}"
                values |= {"remainingTokens": str(tokens_left), "estimatedTokens": str(tokens)}
        case Limit.CALLS:
            message = f"too many calls at the same time: the limit is {limits.calls}"
            values = {"label": "CONCURRENT_CALLS", "limit": str(limits.calls)}
    return RateLimitedError(
        f"{message}, for caller {show_name(caller)}",
        metadata={**values, "caller": show_name(caller).strip("'")},
        retry_delay_s=retry_delay_s * random.uniform(1, 1 + _JITTER),  # noqa: S311 - no secret
    )
