"""Measure single queries beside endless bulk streams, in turns with queries alone.

uv run python -m benchmarks.beside [--rounds N] [--calls N] [--streams N] [--against FLAGS]

A query comes 30 to 100 ms after the answer of the last one. The streams come from a process of
their own. The ratios are to the queries alone, in the same round; the table has the median, the
lowest and the highest ratio of the rounds.
"""

import argparse
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks import workloads
from benchmarks.processes import Loop, server
from embedgrpc.v1 import embedding_service_pb2

_PAUSE_S = (0.03, 0.1)
_WARM_UP_CALLS = 30
# A new stream fills the server's queue first, and a server learns what kinds of work come.
_SETTLE_S = 1.5
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass
class _Subject:
    """A server.

    Attributes:
        name: The name in the table.
        embed: Sends a request and waits for the answer.
        streams: The process with its streams.
        alone: How long the queries alone took, in seconds, in each round.
        beside: How long those beside the streams took.
        texts_per_s: The texts of the streams that were embedded in a second, in each round.
    """

    name: str
    embed: Callable[[Any], Any]
    streams: Loop
    alone: list[list[float]] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)
    texts_per_s: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=150, help="queries of a kind in a round")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--against", metavar="FLAGS", help="also measure a server with these flags")
    parsed = parser.parse_args()
    chooser = random.Random(20)  # noqa: S311 - pauses, not secrets
    with ExitStack() as resources:
        flags = [""] if parsed.against is None else ["", parsed.against]
        subjects = [_open(resources, one) for one in flags]
        for subject in subjects:
            _measure(subject, chooser, _WARM_UP_CALLS, parsed.streams)
            subject.alone, subject.beside, subject.texts_per_s = [], [], []
        for number in range(parsed.rounds):
            # Each goes first in turn, as the rest of the machine may change meanwhile.
            for subject in subjects[:: 1 if number % 2 else -1]:
                _measure(subject, chooser, parsed.calls, parsed.streams)
        print("| queries | | p50 | p90 | p99 | p50 / alone | p99 / alone | bulk |")
        print("|---|---|---|---|---|---|---|---|")
        for subject in subjects:
            _print(subject, parsed.streams)


def _open(resources: ExitStack, flags: str) -> _Subject:
    running = resources.enter_context(server(*shlex.split(flags)))
    channel = resources.enter_context(grpc.insecure_channel(running.target))
    embed = channel.unary_unary(
        "/embedgrpc.v1.EmbeddingService/Embed",
        embedding_service_pb2.EmbedRequest.SerializeToString,
        embedding_service_pb2.EmbedResponse.FromString,
    )
    streams = Loop([sys.executable, "-m", "benchmarks.bulk_streams", running.target])
    resources.enter_context(streams)
    return _Subject(f"server {flags}".strip(), embed, streams)


def _measure(subject: _Subject, chooser: random.Random, calls: int, streams: int) -> None:
    subject.alone.append(_calls(subject, chooser, calls))
    subject.streams.ask(do="start", streams=streams)
    time.sleep(_SETTLE_S)
    texts, began = subject.streams.ask(do="count")["texts"], time.perf_counter()
    subject.beside.append(_calls(subject, chooser, calls))
    texts = subject.streams.ask(do="count")["texts"] - texts
    subject.texts_per_s.append(texts / (time.perf_counter() - began))
    subject.streams.ask(do="stop")


def _calls(subject: _Subject, chooser: random.Random, calls: int) -> list[float]:
    texts = workloads.short().texts
    first = chooser.randrange(len(texts))
    latencies = []
    for number in range(first, first + calls):
        request = embedding_service_pb2.EmbedRequest(texts=[texts[number % len(texts)]])
        time.sleep(chooser.uniform(*_PAUSE_S))
        began = time.perf_counter()
        subject.embed(request)
        latencies.append(time.perf_counter() - began)
    return latencies


def _print(subject: _Subject, streams: int) -> None:
    print(f"| alone | {subject.name} | {_quantiles(subject.alone)} | 1 | 1 | |")
    ratios = [
        _spread(
            [
                _quantile(beside, quantile) / _quantile(alone, quantile)
                for alone, beside in zip(subject.alone, subject.beside, strict=True)
            ]
        )
        for quantile in (_QUANTILES[0], _QUANTILES[-1])
    ]
    bulk = f"{statistics.median(subject.texts_per_s):.0f} texts/s"
    what = f"beside {streams} bulk streams"
    cells = [what, subject.name, _quantiles(subject.beside), *ratios, bulk]
    print(f"| {' | '.join(cells)} |", flush=True)


def _quantiles(rounds: Sequence[Sequence[float]]) -> str:
    every = [one for latencies in rounds for one in latencies]
    return " | ".join(f"{_quantile(every, one) * 1e3:.1f} ms" for one in _QUANTILES)


def _quantile(latencies: Sequence[float], quantile: float) -> float:
    return sorted(latencies)[min(int(len(latencies) * quantile), len(latencies) - 1)]


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
