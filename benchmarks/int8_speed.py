"""Compare the throughput of a server with int8 weights with one with float32, in turns.

uv run python -m benchmarks.int8_speed [--rounds N] [--texts N] [--flags FLAGS]

The ratios are those of the tokens per second of each round, and of the CPU time of the servers.
"""

import argparse
import asyncio
import shlex
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace

from benchmarks import workloads
from benchmarks.processes import RunningServer, cpu_s, server
from benchmarks.throughput import stream, unary
from benchmarks.workloads import Workload
from embedgrpc.client import AsyncClient

_WARM_UP_ROUNDS = 1
# The first is what the other is compared with.
_TYPES = ("float32", "int8")

_Embed = Callable[[AsyncClient, Workload], Awaitable[None]]
_WAYS: tuple[tuple[str, _Embed], ...] = (("stream", stream), ("32 calls in flight", unary))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each server")
    parser.add_argument("--texts", type=int, default=0, help="texts of a workload; 0 for all")
    parser.add_argument("--flags", default="", help="flags of both servers")
    arguments = parser.parse_args()
    print("| workload | | int8 / float32, throughput | float32 / int8, CPU time |")
    print("|---|---|---|---|")
    for whole in (workloads.passages(), workloads.short(), workloads.mixed()):
        workload = replace(whole, texts=whole.texts[: arguments.texts or None])
        with ExitStack() as resources:
            flags = shlex.split(arguments.flags)
            servers = [resources.enter_context(server(*flags, weight_type=one)) for one in _TYPES]
            for way, embed in _WAYS:
                _compare(workload, way, embed, servers, arguments.rounds)


def _compare(
    workload: Workload, way: str, embed: _Embed, servers: list[RunningServer], rounds: int
) -> None:
    seconds: list[tuple[float, float]] = []
    cpu: list[tuple[float, float]] = []
    for number in range(_WARM_UP_ROUNDS + rounds):
        figures = {}
        # Each goes first in turn, so that drift of the machine cancels out.
        for place in (0, 1) if number % 2 else (1, 0):
            figures[place] = asyncio.run(_run(workload, embed, servers[place]))
        if number >= _WARM_UP_ROUNDS:
            seconds.append((figures[0][0], figures[1][0]))
            cpu.append((figures[0][1], figures[1][1]))
    print(f"| {workload.what} | {way} | {_ratio(seconds)} | {_ratio(cpu)} |", flush=True)


async def _run(workload: Workload, embed: _Embed, served: RunningServer) -> tuple[float, float]:
    """Return the time that it took, and the CPU time of the server, in seconds."""
    before = cpu_s(served.pid)
    async with AsyncClient(served.target, timeout_s=600) as client:
        await client.list_models()
        began = time.perf_counter()
        await embed(client, workload)
        took = time.perf_counter() - began
    return took, cpu_s(served.pid) - before


def _ratio(pairs: list[tuple[float, float]]) -> str:
    ratios = [first / other for first, other in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
