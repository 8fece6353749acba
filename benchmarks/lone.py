"""Measure single calls at a steady rate on an idle machine, and the CPU time that they cost.

uv run python -m benchmarks.lone [--weight-type TYPE] [--interval-ms N] [--calls N] [--rounds N]
    [--against FLAGS]...

Beside the server runs a bare session whose threads spin after each run as long as ONNX Runtime's do
by default. They take turns. The ratios are to the session, in the same round.
"""

import argparse
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from benchmarks import workloads
from benchmarks.processes import RawLoop, cpu_s, server
from benchmarks.workloads import Workload
from embedgrpc.v1 import embedding_service_pb2

# ONNX Runtime spins for 2**20 pauses of the processor by default: so long on an EPYC of 2.6 GHz.
_SPIN_DURATION_US = 28_000
_WARM_UP_CALLS = 50


@dataclass
class _Subject:
    """What is called.

    Attributes:
        name: The name in the table.
        pid: Its process.
        prepare: Prepares the texts of a workload.
        call: Embeds the text at an index; returns how long it took, in seconds.
        p50s: The medians of the rounds, in seconds.
        cpu_s: The CPU time of a call, in seconds, in each round.
    """

    name: str
    pid: int
    prepare: Callable[[Workload], None]
    call: Callable[[Workload, int], float]
    p50s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weight-type", default="float32", choices=["float32", "int8"])
    parser.add_argument("--interval-ms", type=float, default=100, help="time between two calls")
    parser.add_argument("--calls", type=int, default=30, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--against",
        metavar="FLAGS",
        action="append",
        default=[],
        help="also measure a server with these flags; may be given several times",
    )
    parsed = parser.parse_args()
    print("| a lone call | | p50 | ratio | CPU of a call | ratio |\n|---|---|---|---|---|---|")
    with ExitStack() as resources:
        subjects = [_session(resources, parsed.weight_type)]
        flags = ["", *parsed.against]
        subjects += [_served(resources, parsed.weight_type, one) for one in flags]
        for workload in (workloads.short(), workloads.passages()):
            for subject in subjects:
                subject.p50s, subject.cpu_s = [], []
                subject.prepare(workload)
                for number in range(_WARM_UP_CALLS):
                    subject.call(workload, number % parsed.calls)
            for number in range(parsed.rounds):
                # Each goes first in turn, as the rest of the machine may change meanwhile.
                for subject in subjects[:: 1 if number % 2 else -1]:
                    _measure(subject, workload, parsed.calls, parsed.interval_ms / 1e3)
            for subject in subjects:
                print(_row(workload, subject, subjects[0]), flush=True)


def _session(resources: ExitStack, weight_type: str) -> _Subject:
    raw = resources.enter_context(RawLoop(weight_type, spin_duration_us=_SPIN_DURATION_US))

    def prepare(workload: Workload) -> None:
        for number, text in enumerate(workload.texts):
            raw.ask(do="prepare", name=f"{workload.name} {number}", texts=[text])

    def call(workload: Workload, number: int) -> float:
        seconds: float = raw.ask(do="one", name=f"{workload.name} {number}")["seconds"]
        return seconds

    return _Subject("session, spinning", raw.pid, prepare, call)


def _served(resources: ExitStack, weight_type: str, flags: str) -> _Subject:
    running = resources.enter_context(server(*shlex.split(flags), weight_type=weight_type))
    channel = resources.enter_context(grpc.insecure_channel(running.target))
    embed = channel.unary_unary(
        "/embedgrpc.v1.EmbeddingService/Embed",
        embedding_service_pb2.EmbedRequest.SerializeToString,
        embedding_service_pb2.EmbedResponse.FromString,
    )
    name = f"server {flags}".strip()
    return _Subject(name, running.pid, lambda _: None, partial(_embed, embed))


def _embed(embed: Callable[[Any], Any], workload: Workload, number: int) -> float:
    request = embedding_service_pb2.EmbedRequest(texts=[workload.texts[number]])
    began = time.perf_counter()
    embed(request)
    return time.perf_counter() - began


def _measure(subject: _Subject, workload: Workload, calls: int, interval_s: float) -> None:
    cpu_before, began = cpu_s(subject.pid), time.perf_counter()
    latencies = []
    for number in range(calls):
        time.sleep(max(began + number * interval_s - time.perf_counter(), 0))
        latencies.append(subject.call(workload, number))
    # Threads may spin for a while after the last one.
    time.sleep(max(began + calls * interval_s - time.perf_counter(), 0))
    subject.p50s.append(statistics.median(latencies))
    subject.cpu_s.append((cpu_s(subject.pid) - cpu_before) / calls)


def _row(workload: Workload, subject: _Subject, base: _Subject) -> str:
    cells = [workload.what, subject.name]
    pairs: tuple[tuple[Sequence[float], Sequence[float]], ...] = (
        (subject.p50s, base.p50s),
        (subject.cpu_s, base.cpu_s),
    )
    for ours, theirs in pairs:
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        cells += [
            f"{statistics.median(ours) * 1e3:.2f} ms",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
