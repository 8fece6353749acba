"""Measure goodput, latency, memory and health beyond the capacity of the server.

A generator that sends ten times the capacity needs a good part of a core. So it has one core, and
the server has the others.

uv run python -m benchmarks.overload [--workload NAME] [--factors 2,10] [--seconds S]
"""

import argparse
import asyncio
import shlex

from benchmarks import arrivals
from benchmarks.figures import Figures
from benchmarks.generator import IN_FLIGHT, IN_FLIGHT_MAX, Generator, run
from benchmarks.overload_table import Point, print_points
from benchmarks.processes import RunningServer, keep_a_core, peak_rss_bytes, server
from benchmarks.unary_calls import WORKLOADS, UnaryCalls, health_checks

_SEED = 20
# Loads within the capacity, to compare overloads with.
_USUAL_LOADS = (0.8, 1.0)
_CHECK_INTERVAL_S = 0.1
# The default timeout of a probe in Kubernetes.
_CHECK_DEADLINE_S = 1.0


def main() -> None:
    """Measure, and print a table with a column for each load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="passages")
    parser.add_argument("--weight-type", default="float32", choices=("float32", "int8"))
    parser.add_argument("--seconds", type=float, default=30, help="length of each measurement")
    parser.add_argument(
        "--settle-s",
        type=float,
        default=15,
        help="start of each measurement to leave out, while the queue fills and drains; longer"
        " than max_queue_s",
    )
    parser.add_argument(
        "--factors",
        type=lambda text: tuple(float(factor) for factor in text.split(",")),
        default=(2.0, 10.0),
        help="overloads in multiples of the capacity, separated by commas",
    )
    parser.add_argument("--flags", default="", help="flags of the server")
    parser.add_argument("--deadline-s", type=float, help="deadline of each call; default: none")
    parser.add_argument(
        "--shared-cores",
        action="store_true",
        help="let the generator share the server's cores; otherwise it has one core",
    )
    arguments = parser.parse_args()
    cores = frozenset() if arguments.shared_cores else keep_a_core()
    calls = WORKLOADS[arguments.workload]()
    flags = shlex.split(arguments.flags)
    with server(*flags, weight_type=arguments.weight_type, cores=cores) as served:
        run(_measure(served, calls, arguments, cores_apart=bool(cores)))


async def _measure(
    served: RunningServer, calls: UnaryCalls, arguments: argparse.Namespace, *, cores_apart: bool
) -> None:
    seconds, settle_s = arguments.seconds, arguments.settle_s
    async with (
        Generator(served, calls, deadline_s=arguments.deadline_s) as generator,
        Generator(served, health_checks(), connections=1, deadline_s=_CHECK_DEADLINE_S) as prober,
    ):
        await generator.warm_up(seconds)
        # Throughput is highest with many calls in flight.
        closed = [
            Figures.of(await generator.closed_loop(in_flight=in_flight, seconds=seconds))
            for in_flight in IN_FLIGHT[-2:]
        ]
        capacity_per_s = max(figures.throughput_per_s for figures in closed)
        rss_bytes_before = peak_rss_bytes(served.pid)
        points = []
        for load in (*_USUAL_LOADS, *arguments.factors):
            whole_s = settle_s + seconds
            window, checks = await asyncio.gather(
                generator.open_loop(
                    arrivals.poisson(capacity_per_s * load, whole_s, _SEED), seconds=whole_s
                ),
                prober.open_loop(arrivals.steady(_CHECK_INTERVAL_S, whole_s), seconds=whole_s),
            )
            points.append(
                Point(
                    load,
                    Figures.of(window.after(settle_s)),
                    Figures.of(window),
                    Figures.of(checks),
                    peak_rss_bytes(served.pid),
                )
            )
    print(f"{calls.name}, {arguments.weight_type}, {arguments.flags or 'defaults'}:")
    cores = "its own core" if cores_apart else "the cores of the server"
    print(f"{calls.what}. The generator has {cores}.")
    print(f"Capacity: {capacity_per_s:,.1f} calls/s. Latency counts from the planned")
    print(f"time. At most {IN_FLIGHT_MAX:,} calls are in flight; more are not sent. The first")
    print(f"{settle_s:g} s of each load count for memory and health, and where a row says so.\n")
    print_points(points, capacity_per_s=capacity_per_s, rss_bytes_before=rss_bytes_before)


if __name__ == "__main__":
    main()
