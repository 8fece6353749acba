"""Runs mutated inputs through the code that reads them.

uv run python -m tests.fuzz [NAME...] [--runs N] [--seconds S] [--seed K] [--findings DIR]
uv run python -m tests.fuzz NAME --replay FILE

Anything but a success or a documented refusal is a finding: another exception, a crash, more than
a second of CPU time, more memory than allowed. The input of a finding is saved in DIR.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.catalog import TARGETS, find
from tests.fuzz.run import fuzz
from tests.fuzz.target import MIB, Finding, Target
from tests.fuzz.worker import replay


def main() -> None:
    """Fuzz the named targets, or all, and print a table; exit with 1 if there are findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=sys.maxsize, help="maximum inputs per target")
    parser.add_argument("--seconds", type=float, default=60.0, help="maximum seconds per target")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument(
        "--findings", type=Path, default=Path(".fuzz"), help="folder for the inputs of findings"
    )
    parser.add_argument("--replay", type=Path, help="run the input in this file without limits")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = [find(name) for name in arguments.names or TARGETS]
    if arguments.replay:
        replay(chosen[0], arguments.replay.read_bytes())
        return
    print("| target | seed | executions | refused | died | a second | findings | grown MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found = 0
    for target in chosen:
        keep = _Keeper(target, arguments.findings, arguments.seed)
        report = fuzz(
            target,
            runs=arguments.runs,
            seconds=arguments.seconds,
            seed=arguments.seed,
            first=arguments.first,
            on_finding=keep,
        )
        found += len(report.findings)
        cells = (
            f"{target.name}: {target.what}",
            str(arguments.seed),
            f"{report.executions:,}",
            f"{report.refused / max(report.executions, 1):.0%}",
            str(report.deaths),
            f"{report.executions / report.seconds:,.0f}",
            str(len(report.findings)),
            f"{report.grown_bytes / MIB:.1f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    sys.exit(1 if found else 0)


class _Keeper:
    """Saves the inputs of findings and prints them."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self._target = target
        self._folder = folder
        self._seed = seed

    def __call__(self, finding: Finding, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._target.name}-{self._seed}-{finding.index}"
        path.write_bytes(content)
        print(f"{path}: {finding.fault}\n{finding.details}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
