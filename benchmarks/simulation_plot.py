"""Plot policies over growing loads."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.simulated_record import Record


def plot(path: Path, title: str, records: Mapping[str, Mapping[int, Record]]) -> None:
    """Draw latency and goodput of interactive calls over the load.

    Args:
        path: The SVG file to write; the same records write the same bytes.
        title: The title.
        records: The records by policy, and by load in percent.
    """
    # Without a salt the ids of elements are random; without the type, letters become shapes.
    with mpl.rc_context({"svg.hashsalt": "embedgrpc", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 8), layout="constrained")
        figure.suptitle(title)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for number, (name, by_load) in enumerate(records.items()):
            loads = sorted(by_load)
            latencies_ms = [by_load[load].latency_s(99) * 1e3 for load in loads]
            goodputs_per_s = [by_load[load].goodput_per_s for load in loads]
            upper.plot(loads, latencies_ms, marker=".", color=f"C{number}", label=f"p99, {name}")
            lower.plot(loads, goodputs_per_s, marker=".", color=f"C{number}", label=name)
        _scale_latency(upper)
        lower.set_ylim(bottom=0)
        lower.set_ylabel("successful interactive calls, calls/s")
        lower.set_xlabel("offered load of planned calls, % of the tokens of full batches")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _scale_latency(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_ylabel("latency of successful calls, ms")
