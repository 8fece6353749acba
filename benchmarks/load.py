"""Measure latency, goodput and CPU time at 10 to 200 % of the capacity.

uv run python -m benchmarks.load [--workload NAME ...] [--flags "--lanes 2"] [--plots DIR]
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from benchmarks import arrivals, load_tables
from benchmarks.figures import Figures
from benchmarks.generator import IN_FLIGHT, Generator, run
from benchmarks.processes import server
from benchmarks.unary_calls import WORKLOADS, UnaryCalls
from benchmarks.variants import Variant

_LOADS = (10, 30, 50, 70, 80, 90, 95, 100, 120, 200)


def main() -> None:
    """Measure one workload after the other; print tables and draw a plot of each."""
    arguments = _arguments()
    for name in arguments.workload:
        calls = WORKLOADS[name]()
        print(f"## {calls.name}, {arguments.weight_type}\n\n{calls.what}.\n", flush=True)
        variants = []
        with ExitStack() as running:
            for flags in arguments.flags or [""]:
                # All run at the same time: an idle server needs no CPU.
                served = running.enter_context(
                    server(*shlex.split(flags), weight_type=arguments.weight_type)
                )
                variants.append(Variant(flags or "defaults", served))
            run(_measure(calls, variants, arguments))
        load_tables.print_tokens(variants)
        if arguments.plots:
            # Slow to import, and only a plot needs it.
            from benchmarks.load_plot import plot  # noqa: PLC0415 - see above

            arguments.plots.mkdir(parents=True, exist_ok=True)
            path = arguments.plots / f"{calls.name}-{arguments.weight_type}.svg"
            plot(path, f"{calls.name}, {arguments.weight_type}", variants)
            print(f"![{calls.name}, {arguments.weight_type}]({path})\n", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--weight-type", default="float32", choices=("float32", "int8"))
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="turns; medians are printed")
    parser.add_argument(
        "--loads",
        type=lambda text: tuple(int(load) for load in text.split(",")),
        default=_LOADS,
        help="loads of the open loops in percent of the capacity, separated by commas",
    )
    parser.add_argument(
        "--flags",
        action="append",
        help='flags of the server, "" for none; repeat the option to compare several in turns',
    )
    parser.add_argument("--deadline-s", type=float, help="deadline of each call; default: none")
    parser.add_argument("--plots", type=Path, help="folder for a plot of each workload")
    return parser.parse_args()


async def _measure(
    calls: UnaryCalls, variants: Sequence[Variant], arguments: argparse.Namespace
) -> None:
    seconds = arguments.seconds
    async with AsyncExitStack() as connected:
        pairs = []
        for variant in variants:
            generator = Generator(variant.served, calls, deadline_s=arguments.deadline_s)
            pairs.append((variant, await connected.enter_async_context(generator)))
            await generator.warm_up(seconds)
        for _, in_flight, direction in _turns(IN_FLIGHT, arguments.rounds):
            for variant, generator in pairs[::direction]:
                window = await generator.closed_loop(in_flight=in_flight, seconds=seconds)
                variant.closed_rounds[in_flight].append(Figures.of(window))
        load_tables.print_closed(variants)
        # The first variant's capacity for all, so that all get the same arrival times.
        capacity_per_s = variants[0].capacity_per_s
        for number, load, direction in _turns(arguments.loads, arguments.rounds):
            plan = arrivals.poisson(capacity_per_s * load / 100, seconds, seed=number)
            for variant, generator in pairs[::direction]:
                window = await generator.open_loop(plan, seconds=seconds)
                variant.open_rounds[load].append(Figures.of(window))
        load_tables.print_open(variants)


def _turns(points: Sequence[int], rounds: int) -> Iterator[tuple[int, int, int]]:
    """Yield the round, the point, and the order of the variants: forwards (1) or backwards (-1).

    The order alternates from point to point and from round to round, so that drift of the machine
    cancels out.
    """
    for number in range(rounds):
        for place, point in enumerate(points):
            yield number, point, -1 if (number + place) % 2 else 1


if __name__ == "__main__":
    main()
