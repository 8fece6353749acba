"""Plot latency and goodput over the offered load."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.variants import Variant

_PERCENTILES = (("p50_s", "p50", ":"), ("p95_s", "p95", "--"), ("p99_s", "p99", "-"))


def plot(path: Path, title: str, variants: Sequence[Variant]) -> None:
    """Draw the open loops of a workload.

    Args:
        path: The SVG file to write; the same figures write the same bytes.
        title: The title.
        variants: Each has its own colour; loads are in percent of the first one's capacity.
    """
    capacity_per_s = variants[0].capacity_per_s
    # Without a salt the ids of elements are random; without the type, letters become shapes.
    with mpl.rc_context({"svg.hashsalt": "embedgrpc", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 8), layout="constrained")
        figure.suptitle(title)
        upper, lower = figure.subplots(2, 1, sharex=True)
        _draw_latency(upper, variants)
        _draw_goodput(lower, variants)
        lower.set_xlabel(f"offered load, % of the capacity of {capacity_per_s:,.1f} calls/s")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_latency(axes: Axes, variants: Sequence[Variant]) -> None:
    for number, variant in enumerate(variants):
        loads = sorted(variant.open)
        for name, label, style in _PERCENTILES:
            latencies_ms = [getattr(variant.open[load], name) * 1e3 for load in loads]
            axes.plot(
                loads,
                latencies_ms,
                style,
                marker=".",
                color=f"C{number}",
                label=f"{label}, {variant.name}",
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_ylabel("latency of successful calls, ms")


def _draw_goodput(axes: Axes, variants: Sequence[Variant]) -> None:
    for number, variant in enumerate(variants):
        loads = sorted(variant.open)
        goodputs_per_s = [variant.open[load].goodput_per_s for load in loads]
        axes.plot(loads, goodputs_per_s, marker=".", color=f"C{number}", label=variant.name)
    loads = sorted(variants[0].open)
    offered_per_s = [variants[0].open[load].offered_per_s for load in loads]
    axes.plot(loads, offered_per_s, ":", color="grey", label="offered")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("goodput, calls/s")
