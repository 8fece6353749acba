"""Makes small mistakes in the code, one at a time, and counts those that no test notices.

uv run python -m tests.mutation [PATH...] [--sample N] [--seed K] [--seconds S]

A PATH is a folder or module below `src/embedgrpc` or the client's; without any, all that serve
calls are taken. N mutants of each module are tried, in an order by chance, so that a run that is
ended early gives a figure, too. The code is changed in a copy. What survives is printed as a diff;
survivors that are known and left stand in survivors.md, with reasons.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mutation.mutants import Mutant, sample_mutants
from tests.mutation.suites import ROOT, find_modules, find_tests
from tests.mutation.workshop import Fate, Workshop


def main() -> None:
    """Tries a sample of mutants, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("paths", nargs="*", type=Path, help="folders or modules; default: all")
    parser.add_argument("--sample", type=int, default=2, help="mutants of each module")
    parser.add_argument(
        "--files",
        type=int,
        help="run the nearest so many test files alone: sooner, but most survivors are none",
    )
    parser.add_argument("--seed", type=int, default=20, help="the same seed gives the same sample")
    parser.add_argument("--seconds", type=float, default=3600, help="start no mutant after this")
    arguments = parser.parse_args()
    modules = find_modules([path.resolve() for path in arguments.paths])
    if not modules:
        parser.error("no module of engine, server, models, backends or the client is named")
    chooser = random.Random(arguments.seed)  # noqa: S311 - no secret
    mutants: list[Mutant] = []
    for module in modules:
        mutants += sample_mutants(module, arguments.sample, chooser)
    chooser.shuffle(mutants)
    print(f"{len(mutants)} mutants of {len(modules)} modules, seed {arguments.seed}.", flush=True)
    fates: dict[str, Counter[Fate]] = {}
    # A shell lets what runs in the background ignore it, and what that starts as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _try_all(mutants, fates, files=arguments.files, until=time.monotonic() + arguments.seconds)
    except KeyboardInterrupt:
        print("Ended early.")
    _print_table(fates)
    sys.exit(any(counts[Fate.SURVIVED] + counts[Fate.UNTRIED] for counts in fates.values()))


def _try_all(
    mutants: list[Mutant], fates: dict[str, Counter[Fate]], *, files: int | None, until: float
) -> None:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        workshop = Workshop(Path(folder))
        # Now, for the copy does not follow what is changed meanwhile.
        tests = {mutant.module: find_tests(mutant.module)[:files] for mutant in mutants}
        for number, mutant in enumerate(mutants, start=1):
            if time.monotonic() > until:
                print(f"The time is over: {number - 1} of {len(mutants)} were tried.")
                return
            began = time.monotonic()
            fate = workshop.try_out(mutant, tests[mutant.module])
            package = mutant.module.relative_to(ROOT).parent
            fates.setdefault(str(package), Counter())[fate] += 1
            seconds = time.monotonic() - began
            print(f"{number}: {fate.value} {mutant.where} in {seconds:.0f} s", flush=True)
            if fate is Fate.SURVIVED:
                print(mutant.diff, flush=True)


def _print_table(fates: dict[str, Counter[Fate]]) -> None:
    total: Counter[Fate] = Counter()
    print("| package | mutants | killed | survived | killed share | not tried |")
    print(f"{'|---' * 6}|")
    for package, counts in sorted(fates.items()):
        total += counts
        _print_row(package, counts)
    _print_row("all", total)


def _print_row(name: str, counts: Counter[Fate]) -> None:
    killed, survived = counts[Fate.KILLED] + counts[Fate.HUNG], counts[Fate.SURVIVED]
    tried = killed + survived
    share = f"{killed / tried:.0%}" if tried else "-"
    print(f"| {name} | {tried} | {killed} | {survived} | {share} | {counts[Fate.UNTRIED]} |")


if __name__ == "__main__":
    main()
