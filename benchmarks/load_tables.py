"""Print tables of variants of a server under load."""

from collections.abc import Sequence

from benchmarks.figures import Figures, counts, milliseconds, number
from benchmarks.generator import IN_FLIGHT_MAX
from benchmarks.variants import Variant


def print_closed(variants: Sequence[Variant]) -> None:
    """Print throughput and latency by calls in flight, and the capacity."""
    print("| calls in flight | variant | calls/s | p50 | p95 | p99", end="")
    print(" | CPU-s per 1000 calls | cores of others |")
    print(f"{'|---' * 8}|")
    for in_flight in variants[0].closed:
        for variant in variants:
            figures = variant.closed[in_flight]
            cells = (
                f"{in_flight}",
                variant.name,
                f"{figures.throughput_per_s:,.1f}",
                _latencies(figures),
                number(figures.server_cpu_s_per_1000),
                number(figures.others_cores),
            )
            print(f"| {' | '.join(cells)} |")
    best = ", ".join(f"{one.capacity_per_s:,.1f} calls/s ({one.name})" for one in variants)
    print(f"\nCapacity: {best}.\n", flush=True)


def print_open(variants: Sequence[Variant]) -> None:
    """Print the figures of each offered load."""
    print(f"Loads in percent of the capacity of: {variants[0].name}. Latency counts from the")
    print(f"planned time. At most {IN_FLIGHT_MAX:,} calls are in flight; more are not sent.\n")
    print("| load | variant | calls | offered/s | goodput/s | p50 | p95 | p99", end="")
    print(" | refused/s | p99 of refusals | other errors | not sent", end="")
    print(" | CPU-s per 1000 calls | sent late, p99 | cores of others |")
    print(f"{'|---' * 15}|")
    for load in variants[0].open:
        for variant in variants:
            figures = variant.open[load]
            cells = (
                f"{load} %",
                variant.name,
                f"{figures.calls:,.0f}",
                f"{figures.offered_per_s:,.1f}",
                f"{figures.goodput_per_s:,.1f}",
                _latencies(figures),
                f"{figures.refused_per_s:,.1f}",
                milliseconds(figures.refused_sent_p99_s),
                counts(figures.errors),
                f"{figures.unsent:,.0f}",
                number(figures.server_cpu_s_per_1000),
                milliseconds(figures.lateness_p99_s),
                number(figures.others_cores),
            )
            print(f"| {' | '.join(cells)} |")
    print(flush=True)


def print_tokens(variants: Sequence[Variant]) -> None:
    """Print the share of real tokens among the computed ones, after the servers stopped."""
    print("| variant | batches | texts a batch | real / computed tokens |\n|---|---|---|---|")
    for variant in variants:
        for totals in variant.served.totals.values():
            batches = totals["batches"]
            print(
                f"| {variant.name} | {batches:,} | {totals['sequences'] / batches:.1f}"
                f" | {totals['tokens'] / totals['padded_tokens']:.3f} |"
            )
    print(flush=True)


def _latencies(figures: Figures) -> str:
    return " | ".join(milliseconds(one) for one in (figures.p50_s, figures.p95_s, figures.p99_s))
