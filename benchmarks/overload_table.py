"""Print the table of a server beyond its capacity."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Figures, counts, milliseconds, number


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one load.

    Attributes:
        load: The offered calls, over the capacity.
        figures: The figures of the calls, without the first seconds.
        whole: The figures of all calls.
        checks: The figures of the health checks beside them.
        rss_bytes_max: The peak memory of the server so far.
    """

    load: float
    figures: Figures
    whole: Figures
    checks: Figures
    rss_bytes_max: int


def print_points(points: Sequence[Point], *, capacity_per_s: float, rss_bytes_before: int) -> None:
    """Print a row for each figure and a column for each load.

    Args:
        points: The loads; latencies are compared with the first one's.
        capacity_per_s: The throughput of the closed loop.
        rss_bytes_before: The peak memory before the loads.
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
        "p99 of accepted, first seconds included": milliseconds(point.whole.p99_s),
        "refused/s": f"{figures.refused_per_s:,.1f}",
        "p99 of refusals": milliseconds(figures.refused_p99_s),
        "p99 of refusals, from sending": milliseconds(figures.refused_sent_p99_s),
        "other errors": counts(figures.errors),
        "not sent": f"{figures.unsent:,.0f}",
        "CPU-s of the server per 1000 successful calls": number(figures.server_cpu_s_per_1000),
        "peak memory, MB": f"{point.rss_bytes_max / 1e6:,.0f}",
        "peak memory / before": number(point.rss_bytes_max / rss_bytes_before),
        "p99 of health checks": milliseconds(checks.p99_s),
        "failed health checks": f"{counts(checks.errors)} of {checks.calls:,.0f}",
        "calls sent late, p99": milliseconds(figures.lateness_p99_s),
        "cores used by the generator": number(figures.generator_cores),
        "cores used by other programs": number(figures.others_cores),
    }
