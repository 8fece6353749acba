"""Counts values by buckets. Adding one takes under a microsecond, so every call can afford it."""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import SpanContext

# From half a millisecond to a minute, doubling.
SECONDS: Final = tuple(0.0005 * 2**power for power in range(18))
TOKENS: Final = tuple(float(2**power) for power in range(2, 16))
SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A value that was counted, and the trace that it came from.

    Attributes:
        value: The value.
        span: The span.
        at_s: When it was counted, in seconds since 1970.
    """

    value: float
    span: SpanContext
    at_s: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram has counted.

    Attributes:
        bounds: The upper bounds of the buckets; each includes its bound.
        counts: The values in each bucket; one more for those above the last bound.
        sum: The sum of all values.
        exemplars: The latest of each bucket that has one.
    """

    bounds: tuple[float, ...]
    counts: Sequence[int]
    sum: float
    exemplars: Mapping[int, Exemplar]

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)


class Histogram:
    """Counts values. One thread at a time adds; any thread reads.

    Args:
        bounds: The upper bounds of the buckets, in order.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}

    def add(self, value: float, span: object = None) -> None:
        """Count a value.

        Args:
            value: The value.
            span: Its span, if it is recorded; it becomes the exemplar of its bucket.
        """
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if isinstance(span, SpanContext) and span.trace_flags.sampled:
            self._exemplars[bucket] = Exemplar(value, span, time.time())

    def read(self) -> Distribution:
        """Return what was counted. From any thread."""
        return Distribution(self._bounds, tuple(self._counts), self._sum, self._exemplars.copy())
