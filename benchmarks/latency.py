"""Measure the latency of single texts, against a bare session run and beside bulk work.

uv run python -m benchmarks.latency [--calls N]
"""

import argparse
import asyncio
import itertools
import statistics
import time

from benchmarks import workloads
from benchmarks.processes import RawLoop, server
from benchmarks.workloads import Workload
from embedgrpc.client import AsyncClient, Client

_WARM_UP_CALLS = 20
_BULK_STREAMS = 2


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="calls for each figure")
    calls = parser.parse_args().calls
    print("| one text at a time | session.run p50 | Client p50 | ratio | AsyncClient p50 | ratio |")
    print("|---|---|---|---|---|---|")
    with RawLoop() as raw, server() as served:
        for workload in (workloads.passages(), workloads.short()):
            asyncio.run(_idle(workload, raw, served.target, calls))
    print("\n| 8 queries a second | p50 | p99 |\n|---|---|---|")
    with server() as served:
        asyncio.run(_beside_bulk(served.target, calls))


async def _idle(workload: Workload, raw: RawLoop, target: str, calls: int) -> None:
    """Run calls one after the other, each after a session run with the same text."""
    text = workload.texts[0]
    raw.ask(do="prepare", name=workload.name, texts=[text])
    bare, blocking, awaited = [], [], []
    async with AsyncClient(target) as async_client:
        with Client(target) as client:
            for _ in range(_WARM_UP_CALLS + calls):
                bare.append(raw.ask(do="one", name=workload.name)["seconds"])
                began = time.perf_counter()
                # It blocks the event loop, which has nothing else to run.
                client.embed([text])
                blocking.append(time.perf_counter() - began)
                bare.append(raw.ask(do="one", name=workload.name)["seconds"])
                began = time.perf_counter()
                await async_client.embed([text])
                awaited.append(time.perf_counter() - began)
    session_ms = statistics.median(bare[2 * _WARM_UP_CALLS :]) * 1e3
    row = [workload.what, f"{session_ms:.2f} ms"]
    for seconds in (blocking, awaited):
        served_ms = statistics.median(seconds[_WARM_UP_CALLS:]) * 1e3
        row += [f"{served_ms:.2f} ms", f"{served_ms / session_ms:.3f}"]
    print(f"| {' | '.join(row)} |", flush=True)


async def _beside_bulk(target: str, calls: int) -> None:
    """Send queries at a steady rate, first alone, then beside endless streams."""
    queries = workloads.short().texts
    alone = await _open_loop(target, queries, calls)
    streams = [asyncio.create_task(_endless(target)) for _ in range(_BULK_STREAMS)]
    beside = await _open_loop(target, queries, calls)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    for name, latencies in (("alone", alone), (f"beside {_BULK_STREAMS} bulk streams", beside)):
        latencies.sort()
        p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
        print(f"| {name} | {p50 * 1e3:.1f} ms | {p99 * 1e3:.1f} ms |", flush=True)


async def _open_loop(target: str, texts: tuple[str, ...], calls: int) -> list[float]:
    """Send at planned times; return latencies from the planned times."""
    interval_s = 1 / 8

    async def call(client: AsyncClient, text: str, planned: float) -> float:
        await client.embed([text])
        return time.perf_counter() - planned

    async with AsyncClient(target) as client:
        await client.list_models()
        began = time.perf_counter()
        tasks = []
        for number, text in enumerate(itertools.islice(itertools.cycle(texts), calls)):
            planned = began + number * interval_s
            await asyncio.sleep(max(planned - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(call(client, text, planned)))
        return list(await asyncio.gather(*tasks))


async def _endless(target: str) -> None:
    texts = itertools.cycle(workloads.passages().texts)
    async with AsyncClient(target, timeout_s=600) as client:
        async for _ in client.embed_stream(texts, order="completion"):
            pass


if __name__ == "__main__":
    main()
