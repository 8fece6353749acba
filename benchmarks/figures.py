"""The figures of a window of calls."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from grpc import StatusCode

from benchmarks.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a window; nan where it has no calls to compute them from.

    Attributes:
        calls: The planned calls.
        offered_per_s: The planned calls in a second.
        goodput_per_s: The calls that succeeded within the window, in a second.
        throughput_per_s: The calls that succeeded, over the time until the last one did: the
            throughput of a closed loop, however long the calls take.
        refused_per_s: The calls that ended with RESOURCE_EXHAUSTED, in a second.
        p50_s: The latency of successful calls, from the planned time.
        p95_s: See `p50_s`.
        p99_s: See `p50_s`.
        refused_p99_s: The latency of refusals, from the planned time.
        refused_sent_p99_s: The latency of refusals, from the time of sending.
        lateness_p99_s: The delay of sending, from the planned time.
        generator_cores: The CPU time of the generator, over time.
        others_cores: The CPU time of all other programs, without the server's, over time. Unless
            it is close to 0, the other figures are those of a smaller machine.
        server_cpu_s_per_1000: The CPU seconds of the server for 1000 successful calls, with those
            for refusals.
        unsent: The calls that were not sent.
        errors: The calls with another status, by its name.
    """

    calls: float
    offered_per_s: float
    goodput_per_s: float
    throughput_per_s: float
    refused_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    refused_p99_s: float
    refused_sent_p99_s: float
    lateness_p99_s: float
    generator_cores: float
    others_cores: float
    server_cpu_s_per_1000: float
    unsent: float
    errors: Mapping[str, int]

    @classmethod
    def of(cls, window: Window) -> Self:
        """Return the figures of a window whose calls have all ended."""
        answered = [one for one in window.outcomes if one.code is StatusCode.OK]
        refused = [one for one in window.outcomes if one.code is StatusCode.RESOURCE_EXHAUSTED]
        calls = len(window.outcomes) + window.unsent
        in_time = sum(one.done_s <= window.seconds for one in answered)
        latencies_s = [one.done_s - one.planned_s for one in answered]
        codes = Counter(one.code.name for one in window.outcomes)
        return cls(
            calls=calls,
            offered_per_s=calls / window.seconds,
            goodput_per_s=in_time / window.seconds,
            throughput_per_s=len(answered)
            / max((one.done_s for one in answered), default=window.seconds),
            refused_per_s=len(refused) / window.seconds,
            p50_s=percentile(latencies_s, 50),
            p95_s=percentile(latencies_s, 95),
            p99_s=percentile(latencies_s, 99),
            refused_p99_s=percentile([one.done_s - one.planned_s for one in refused], 99),
            refused_sent_p99_s=percentile([one.done_s - one.sent_s for one in refused], 99),
            lateness_p99_s=percentile([one.sent_s - one.planned_s for one in window.outcomes], 99),
            generator_cores=window.generator_cpu_s / window.seconds,
            others_cores=window.others_cpu_s / window.seconds,
            server_cpu_s_per_1000=window.server_cpu_s * 1000 / len(answered)
            if answered
            else math.nan,
            unsent=window.unsent,
            errors={
                code: count
                for code, count in codes.items()
                if code not in (StatusCode.OK.name, StatusCode.RESOURCE_EXHAUSTED.name)
            },
        )

    @classmethod
    def median(cls, rounds: Sequence[Self]) -> Self:
        """Return the median of each figure over the rounds that have it, and all errors."""
        errors: Counter[str] = Counter()
        medians = {}
        for one in rounds:
            errors.update(one.errors)
        for field in dataclasses.fields(cls):
            if field.name != "errors":
                values = [getattr(one, field.name) for one in rounds]
                known = [value for value in values if not math.isnan(value)]
                medians[field.name] = statistics.median(known) if known else math.nan
        return cls(**medians, errors=errors)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank; nan if there are no values.

    Args:
        values: The values, in any order.
        percent: 1 to 100.
    """
    if not values:
        return math.nan
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def milliseconds(seconds: float) -> str:
    """Format a time for a table; a dash for nan."""
    return "-" if math.isnan(seconds) else f"{seconds * 1e3:,.1f} ms"


def number(value: float) -> str:
    """Format a number for a table; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:,.2f}"


def counts(errors: Mapping[str, int]) -> str:
    """Format errors for a table."""
    return ", ".join(f"{count} {code}" for code, count in sorted(errors.items())) or "0"
