"""Measure the latency of single texts against a bare session run.

uv run python -m benchmarks.latency [--calls N]
"""

import argparse
import asyncio
import statistics
import time

from benchmarks import workloads
from benchmarks.processes import RawLoop, server
from benchmarks.workloads import Workload
from embedgrpc.client import AsyncClient, Client

_WARM_UP_CALLS = 20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="calls for each figure")
    calls = parser.parse_args().calls
    print("| one text at a time | session.run p50 | Client p50 | ratio | AsyncClient p50 | ratio |")
    print("|---|---|---|---|---|---|")
    with RawLoop() as raw, server() as served:
        for workload in (workloads.passages(), workloads.short()):
            asyncio.run(_idle(workload, raw, served.target, calls))


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


if __name__ == "__main__":
    main()
