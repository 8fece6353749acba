"""Plot speed and CPU time of a server beside those of other programs."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peer_times import Times

Work = tuple[str, Mapping[str, Times]]
"""What was done, and the times of each contender by its name."""


def plot(path: Path, title: str, lists: Sequence[Work], calls: Sequence[Work]) -> None:
    """Draw a row of charts for lists, one for lone calls, and one for the CPU time of a text.

    Args:
        path: The SVG file to write; the same figures write the same bytes.
        title: The title.
        lists: Each has a chart of texts per second, and one of CPU time.
        calls: Each has a chart of latency, in ms.
    """
    # Without a salt the ids of elements are random; without the type, letters become shapes.
    with mpl.rc_context({"svg.hashsalt": "embedgrpc", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 8), layout="constrained")
        figure.suptitle(title)
        rows = figure.subplots(3, len(lists), squeeze=False)
        for axes, (work, times) in zip(rows[0], lists, strict=True):
            speeds = {name: statistics.median(one.speeds) for name, one in times.items()}
            _draw(axes, f"{work}: texts/s (more is better)", speeds)
        for axes, (work, times) in zip(rows[1], calls, strict=True):
            latencies = {name: statistics.median(one.speeds) * 1e3 for name, one in times.items()}
            _draw(axes, f"{work}, one at a time: p50 in ms (less is better)", latencies)
        for axes, (work, times) in zip(rows[2], calls, strict=True):
            cpu = {name: statistics.median(one.cpu_s) * 1e3 for name, one in times.items()}
            _draw(axes, f"{work}, one at a time: CPU ms a text (less is better)", cpu)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(axes: Axes, title: str, figures: Mapping[str, float]) -> None:
    # The first one is at the top.
    names = list(figures)[::-1]
    colours = ["C0" if name.startswith("server") else "C7" for name in names]
    bars = axes.barh(names, [figures[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="{:,.3g}", padding=3)
    axes.margins(x=0.2)
    axes.set_title(title, fontsize="medium")
