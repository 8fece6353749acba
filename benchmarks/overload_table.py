"""The table of what a server does beyond its capacity."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Figures, counts, milliseconds, number


@dataclass(frozen=True, slots=True)
class Point:
    """One load, and what came of it.

    Attributes:
        load: Offered calls over the capacity.
        figures: Of the calls, once the load has lasted a while.
        whole: Of all calls.
        checks: Of the health checks beside them.
        rss_bytes_max: The most memory that the server has had until then.
    """

    load: float
    figures: Figures
    whole: Figures
    checks: Figures
    rss_bytes_max: int


def print_points(points: Sequence[Point], *, capacity_per_s: float, rss_bytes_before: int) -> None:
    """Prints a row for each figure and a column for each load.

    Args:
        points: The first is what latencies are compared with.
        capacity_per_s: Calls that were answered in the closed loop.
        rss_bytes_before: What the memory is compared with.
    """
    best_per_s = max(point.figures.goodput_per_s for point in points)
    columns = [
        {
            "goodput / best": number(point.figures.goodput_per_s / best_per_s),
            "goodput / capacity": number(point.figures.goodput_per_s / capacity_per_s),
            **_column(point, points[0], rss_bytes_before),
        }
        for point in points
    ]
    print(f"| offered / capacity | {' | '.join(f'{point.load:g}' for point in points)} |")
    print(f"|---|{'---|' * len(points)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |", flush=True)


def _column(point: Point, first: Point, rss_bytes_before: int) -> dict[str, str]:
    figures, checks = point.figures, point.checks
    return {
        "offered/s": f"{figures.offered_per_s:,.1f}",
        "goodput/s": f"{figures.goodput_per_s:,.1f}",
        "p50 of accepted": milliseconds(figures.p50_s),
        "p99 of accepted": milliseconds(figures.p99_s),
        "p99 / p99 at the least load": number(figures.p99_s / first.figures.p99_s),
        "p99 of accepted, from the beginning": milliseconds(point.whole.p99_s),
        "refused/s": f"{figures.refused_per_s:,.1f}",
        "p99 of refusals": milliseconds(figures.refused_p99_s),
        "p99 of refusals, from when they were sent": milliseconds(figures.refused_sent_p99_s),
        "other errors": counts(figures.errors),
        "not sent": f"{figures.unsent:,.0f}",
        "CPU-s of the server per 1000 answers": number(figures.server_cpu_s_per_1000),
        "peak memory, MB": f"{point.rss_bytes_max / 1e6:,.0f}",
        "peak memory / before": number(point.rss_bytes_max / rss_bytes_before),
        "p99 of health checks": milliseconds(checks.p99_s),
        "failed health checks": f"{counts(checks.errors)} of {checks.calls:,.0f}",
        "calls sent late, p99": milliseconds(figures.lateness_p99_s),
        "cores that the generator took": number(figures.generator_cores),
        "cores that other programs took": number(figures.others_cores),
    }
