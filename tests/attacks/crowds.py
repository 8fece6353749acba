"""Crowds: very many connections, or calls, that do nothing."""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc
from tests.attacks.attack import Attack
from tests.server.connections.raw_http2 import PREFACE, frame, headers, raw_connection

_WATCH = b"/grpc.health.v1.Health/Watch"
_STREAM = b"/embedgrpc.v1.EmbeddingService/StreamEmbed"
_CONNECTIONS = 520
_CHURNED = 2000
_STREAMS = 8000
_NEWCOMER_INTERVAL_S = 0.1
# A client that was refused tries again after a second, as all do.
_NEWCOMER_TIMEOUT_S = 30.0


@contextlib.asynccontextmanager
async def _newcomers(target: str) -> AsyncIterator[list[float]]:
    """Connect and call repeatedly; return the seconds that each took."""
    took: list[float] = []
    task = asyncio.create_task(_connect_again_and_again(target, took))
    try:
        yield took
    finally:
        if not took and not task.done():
            # The first may still be on its way.
            await asyncio.wait((task,), timeout=_NEWCOMER_TIMEOUT_S)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _connect_again_and_again(target: str, took: list[float]) -> None:
    while True:
        began = time.monotonic()
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
            await stub.Embed(
                pb.EmbedRequest(texts=["I am new here."]),
                timeout=_NEWCOMER_TIMEOUT_S,
                wait_for_ready=True,
            )
        took.append(time.monotonic() - began)
        await asyncio.sleep(_NEWCOMER_INTERVAL_S)


def _tell(took: list[float], what: str) -> str:
    return f"{what}; {len(took)} newcomers, the slowest in {max(took) * 1e3:.0f} ms"


async def _watchers(target: str, seconds: float) -> str:
    """Keep connections that watch the health service, and replace those that are closed."""
    until = time.monotonic() + seconds
    opened = 0
    async with _newcomers(target) as took, asyncio.TaskGroup() as group:

        async def hold() -> None:
            nonlocal opened
            while time.monotonic() < until:
                opened += 1
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with (
                        asyncio.timeout(until - time.monotonic()),
                        raw_connection(target) as connection,
                    ):
                        await connection.send(headers(_WATCH), frame(b""))
                        await connection.closed.wait()
                # As patient as a client that backs off.
                await asyncio.sleep(1.0)

        for _ in range(_CONNECTIONS):
            group.create_task(hold())
    return _tell(took, f"{opened} connections, {_CONNECTIONS} at once")


async def _churn(target: str, seconds: float) -> str:
    """Open connections as fast as possible; keep the latest of them open."""
    until = time.monotonic() + seconds
    host, _, port = target.rpartition(":")
    held: deque[asyncio.StreamWriter] = deque()
    opened = 0
    try:
        async with _newcomers(target) as took:
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(PREFACE)
                    held.append(writer)
                    opened += 1
                if len(held) > _CHURNED:
                    held.popleft().transport.abort()
    finally:
        for writer in held:
            writer.transport.abort()
    return _tell(took, f"{opened} connections")


async def _silent_streams(target: str, seconds: float) -> str:
    """Open streams on a few connections and send nothing."""
    until = time.monotonic() + seconds
    async with _newcomers(target) as took, contextlib.AsyncExitStack() as held:
        connections = [await held.enter_async_context(raw_connection(target)) for _ in range(2)]
        answers = [
            (await connection.send(headers(_STREAM), end=False))[1]
            for connection in itertools.islice(itertools.cycle(connections), _STREAMS)
        ]
        await asyncio.sleep(max(until - time.monotonic(), 0))
        refused = sum(answer.ended.is_set() for answer in answers)
    return _tell(took, f"{len(answers)} streams, {refused} refused")


ATTACKS = (
    Attack("watchers", "520 connections that only watch", _watchers, test_s=2.0),
    Attack("churn", "connections without end", _churn, in_suite=False),
    Attack("silent-streams", "8,000 streams without a message", _silent_streams, in_suite=False),
)
