"""The long run: `uv run python -m tests.endurance`."""

import argparse
import faulthandler
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tests.as_served  # noqa: F401 - before gRPC is loaded
from tests.endurance.plan import Plan, Summary
from tests.endurance.run import run

# The event loop hangs when nothing is printed for so long.
_SILENCE_S_MAX = 300.0


def main() -> int:
    """Run it; return 0 when there were no findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="texts to send")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds-max", type=float, default=float("inf"))
    parser.add_argument("--callers", type=int, default=20, help="clients that call at once")
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--lanes-compete", action="store_true")
    parser.add_argument("--queued-inputs-max", type=int, default=200, help="of each class")
    flags = parser.parse_args()
    _say(f"seed {flags.seed}")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            items=flags.items,
            seed=flags.seed,
            cache_dir=Path(folder),
            seconds_max=flags.seconds_max,
            callers=flags.callers,
            lanes=flags.lanes,
            lanes_compete=flags.lanes_compete,
            queued_inputs_max=flags.queued_inputs_max,
            progress=_say,
        )
        summary = run(plan)
    faulthandler.cancel_dump_traceback_later()
    for line in _report(summary):
        _say(line)
    for problem in summary.problems:
        _say(f"WRONG: {problem}")
    _say(f"seed {flags.seed}: {'WRONG' if summary.problems else 'all is well'}")
    return 1 if summary.problems else 0


def _say(line: str) -> None:
    faulthandler.dump_traceback_later(_SILENCE_S_MAX, exit=True)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _report(summary: Summary) -> list[str]:
    account, totals = summary.account, summary.totals
    middle_mb, end_mb = summary.rss_mb
    shared = totals["embedgrpc.batch.shared_sequences"]
    batches = totals["embedgrpc.batches"]
    return [
        f"{summary.sent} texts in {summary.seconds:.0f} s",
        f"clients saw: {_table(summary.outcomes)}",
        f"calls: {_table(summary.calls)}",
        f"the server counted: {_table(summary.fates)}; {sum(summary.fates.values())} in all",
        f"{batches} batches, {account.rows} rows; {shared} duplicates shared a row",
        f"run again to find who was to blame: {account.again} rows",
        f"begun for nobody: {account.for_nobody} rows",
        f"of these before the server could know: {account.for_nobody_unheard} rows",
        f"of these to find who was to blame: {account.for_nobody_again} rows",
        f"the latest: {account.nobody_s_max:.3f} s after the last client had left",
        f"left by all clients while they ran: {account.left_behind} rows",
        f"memory: {middle_mb:.1f} MB in the middle, {end_mb - middle_mb:+.1f} MB until the end",
    ]


def _table(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
