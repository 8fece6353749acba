"""Runs a server under mixed load for a long time, and reports whether it grows.

uv run python -m tests.soak [--minutes 60]

The load holds good calls, cancels, deadlines, slow readers, refusals, oversized messages, bursts
and reconnects. Ends with 1 when memory grows by more than 0.5 MB an hour beyond what noise
explains, or threads or descriptors are left.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.soak.run import Plan, Summary, soak

_SLOPE_MAX_MB_PER_H = 0.5
# The event loop's executor starts its threads when so much work comes at once, and keeps them.
_LATE_THREADS = min(32, (os.cpu_count() or 1) + 4)
_WARM_UP_SHARE = 0.25
_WARM_UP_S_MAX = 900.0


def main() -> int:
    """Run it; return 0 when nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", default="soak")
    flags = parser.parse_args()
    seconds = flags.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            seconds=seconds,
            warm_up_s=min(_WARM_UP_SHARE * seconds, _WARM_UP_S_MAX),
            interval_s=5.0,
            cache_dir=Path(folder),
            seed=flags.seed,
            progress=lambda line: print(line, flush=True),
        )
        summary = asyncio.run(soak(plan))
    for line in _report(summary):
        print(line)
    problems = _problems(summary)
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else 0


def _report(summary: Summary) -> list[str]:
    lines = [f"{count} {kind}" for kind, count in sorted(summary.calls.items())]
    for name, one in (("before", summary.before), ("after", summary.after)):
        held = f"{one.rss_mb:.1f} MB, {one.threads} threads, {one.descriptors} descriptors"
        lines.append(f"idle {name}: {held}")
    peak_mb = max(one.rss_mb for one in summary.samples)
    slope = summary.trend
    lines.append(f"most: {peak_mb:.1f} MB")
    lines.append(f"slope: {slope.mb_per_h:+.2f} MB/h, standard error {slope.error_mb_per_h:.2f}")
    return lines


def _problems(summary: Summary) -> list[str]:
    problems = []
    slope = summary.trend
    if slope.mb_per_h - 2 * slope.error_mb_per_h > _SLOPE_MAX_MB_PER_H:
        problems.append(f"memory grows by {slope.mb_per_h:.2f} MB/h")
    for what, allowed in (("threads", _LATE_THREADS), ("descriptors", 0)):
        before, after = getattr(summary.before, what), getattr(summary.after, what)
        if after > before + allowed:
            problems.append(f"{before} {what} before, {after} after")
    if summary.exit_code:
        problems.append(f"the server ended with {summary.exit_code}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
