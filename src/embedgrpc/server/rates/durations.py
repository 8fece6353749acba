"""Durations as OpenAI's services write them."""

import math

_HOUR_MS, _MINUTE_MS, _SECOND_MS = 3_600_000, 60_000, 1000


def duration(seconds: float) -> str:
    """Return a duration such as 0s, 120ms, 1.5s, 6m0s or 1h0m30s, rounded up to milliseconds."""
    left = math.ceil(seconds * 1000)
    if 0 < left < _SECOND_MS:
        return f"{left}ms"
    hours, left = divmod(left, _HOUR_MS)
    minutes, left = divmod(left, _MINUTE_MS)
    text = f"{hours}h" if hours else ""
    if hours or minutes:
        text += f"{minutes}m"
    return f"{text}{left / _SECOND_MS:g}s"
