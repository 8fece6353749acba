"""Compare served tokens per second with a bare ONNX Runtime loop, on the same texts, in turns.

uv run python -m benchmarks.throughput [--rounds N]
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import workloads
from benchmarks.processes import RawLoop, RunningServer, cpu_s, server
from benchmarks.workloads import Workload
from embedgrpc.client import AsyncClient

_UNARY_IN_FLIGHT = 32
_STREAM_BATCH = 64
# The batches of servers without a token budget.
_FIFO_SEQUENCES = 32
_WARM_UP_ROUNDS = 1


@dataclass
class Contender:
    """One way to embed a workload, and its times.

    Attributes:
        name: The name in tables.
        run: Embeds the workload once; returns seconds and CPU seconds.
    """

    name: str
    run: Callable[[], tuple[float, float]]
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def main() -> None:
    """Run the comparison, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--texts", type=int, default=0, help="texts of a workload; 0 for all")
    parser.add_argument("--weight-type", default="float32", choices=("float32", "int8"))
    arguments = parser.parse_args()
    weights = arguments.weight_type
    rounds = arguments.rounds
    print("| workload | contender | tokens/s | ratio to raw | CPU-s per 1 M tokens | CPU ratio |")
    print("|---|---|---|---|---|---|")
    for whole in (workloads.passages(), workloads.short(), workloads.mixed()):
        workload = replace(whole, texts=whole.texts[: arguments.texts or None])
        with RawLoop(weights) as raw, server(weight_type=weights) as served:
            tokens = raw.ask(do="prepare", name=workload.name, texts=workload.texts)["tokens"]
            contenders = list(_contenders(workload, raw, served))
            for number in range(_WARM_UP_ROUNDS + rounds):
                # The order alternates, so that drift of the machine cancels out.
                for contender in contenders if number % 2 else reversed(contenders):
                    seconds, cpu = contender.run()
                    if number >= _WARM_UP_ROUNDS:
                        contender.seconds.append(seconds)
                        contender.cpu_s.append(cpu)
            _print(workload, contenders, tokens)
        for totals in served.totals.values():
            real, padded = totals["tokens"], totals["padded_tokens"]
            print(f"| {workload.name} | served: real / computed | | {real / padded:.3f} | | |")


def _contenders(workload: Workload, raw: RawLoop, served: RunningServer) -> Iterator[Contender]:
    budget = raw.ask(do="best", name=workload.name)["budget"]

    def run_raw(**batches: Any) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            answer = raw.ask(do="run", name=workload.name, **batches)
            return answer["seconds"], answer["cpu_s"]

        return run

    def run_served(
        embed: Callable[[AsyncClient, Workload], object],
    ) -> Callable[[], tuple[float, float]]:
        async def once() -> float:
            async with AsyncClient(served.target, timeout_s=600) as client:
                await client.list_models()
                began = time.perf_counter()
                await embed(client, workload)  # type: ignore[misc]  # both are coroutine functions
                return time.perf_counter() - began

        def run() -> tuple[float, float]:
            before = cpu_s(served.pid)
            seconds = asyncio.run(once())
            return seconds, cpu_s(served.pid) - before

        return run

    yield Contender(f"raw, sorted, {budget} tokens a batch", run_raw(order="sorted", budget=budget))
    yield Contender(
        f"raw, unsorted, {_FIFO_SEQUENCES} texts a batch",
        run_raw(order="given", sequences=_FIFO_SEQUENCES),
    )
    yield Contender("served, stream", run_served(stream))
    yield Contender(f"served, unary, 1 text, {_UNARY_IN_FLIGHT} in flight", run_served(unary))


async def stream(client: AsyncClient, workload: Workload) -> None:
    """Embed a workload with one stream."""
    answered = 0
    async for result in client.embed_stream(
        workload.texts, batch_size=_STREAM_BATCH, order="completion"
    ):
        answered += result.error is None
    if answered != len(workload.texts):
        raise RuntimeError(f"{answered} of {len(workload.texts)} texts were embedded")


async def unary(client: AsyncClient, workload: Workload) -> None:
    """Embed a workload with calls of one text, several in flight."""
    texts = iter(workload.texts)

    async def work() -> None:
        for text in texts:
            await client.embed([text])

    await asyncio.gather(*(work() for _ in range(_UNARY_IN_FLIGHT)))


def _print(workload: Workload, contenders: list[Contender], tokens: int) -> None:
    first = contenders[0]
    for contender in contenders:
        ratios = sorted(
            raw / own for raw, own in zip(first.seconds, contender.seconds, strict=True)
        )
        cpu_ratios = [raw / own for raw, own in zip(first.cpu_s, contender.cpu_s, strict=True)]
        print(
            f"| {workload.name} | {contender.name} "
            f"| {tokens / statistics.median(contender.seconds):,.0f} "
            f"| {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) "
            f"| {statistics.median(contender.cpu_s) / tokens * 1e6:.0f} "
            f"| {statistics.median(cpu_ratios):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
