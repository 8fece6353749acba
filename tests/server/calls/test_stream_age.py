"""Streams end by themselves before gRPC closes their connection."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import pytest

from embedgrpc.client import (
    AsyncClient,
    AsyncEmbedStream,
    Client,
    ConnectionFailedError,
    ShuttingDownError,
)
from embedgrpc.engine.errors import EngineError
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.connections.listening import channel_arguments
from embedgrpc.server.settings.settings import Settings
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.rankings import part, setup
from tests.server.service import PATIENCE_S, until
from tests.server.streams import Stream

AGE_S = 0.5


class _Drained:
    """Records when a stream is drained."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def drain(self, why: EngineError) -> None:
        """Record the time."""
        assert "open another" in why.message
        assert why.metadata["label"] == "MAX_AGE"
        self.at.append(asyncio.get_running_loop().time())


async def test_streams_end_at_different_times_but_not_too_late() -> None:
    """Each ends in the last tenth of its age, so that not all clients reconnect at once.

    Timers run in the order of their times, however busy the machine is.
    """
    age_s = 0.2
    streams: list[Any] = [_Drained() for _ in range(50)]
    open_streams = OpenStreams(max_age_s=age_s)
    counts: list[int] = []
    over = asyncio.Event()

    def count() -> None:
        counts.append(sum(len(stream.at) for stream in streams))

    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_at(began + 0.9 * age_s, count)
    with ExitStack() as opened:
        for stream in streams:
            opened.enter_context(open_streams.watch(stream))
        loop.call_at(loop.time() + age_s, count)
        loop.call_at(loop.time() + age_s, over.set)
        await over.wait()
    assert counts == [0, 50]


async def test_an_old_stream_is_answered_and_ends(serve: Serve, backend: HashBackend) -> None:
    """Every accepted input is answered first, as long as that takes no longer than the grace."""
    service = await serve(backend=backend, max_connection_age_s=AGE_S)
    backend.hold()
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"), ("b", "b"))
    ranking = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await ranking.write(setup())
    await ranking.write(part("r", "q", ["one"]))
    assert (await ranking.read()).WhichOneof("step") == "ready"
    await until(lambda: service.open_streams == 2)
    streams = service.server._open_streams._streams
    await until(lambda: all(each._draining and each._in_flight for each in streams))
    # Long after the core sent GOAWAY.
    await asyncio.sleep(AGE_S)
    backend.release()
    assert [result.id for result in await stream.results(2)] == ["a", "b"]
    assert (await ranking.read()).result.id == "r"
    for failure in (await stream.failure(), await failure_of(ranking.read())):
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert (failure.reason, failure.label) == ("SHUTTING_DOWN", "MAX_AGE")
        assert "open another" in failure.details
    assert service.open_streams == 0


async def test_a_late_stream_on_an_old_connection_is_not_cut_off(serve: Serve) -> None:
    """A stream that begins just before its connection's GOAWAY may last as long as others."""
    service = await serve(max_connection_age_s=1, max_connection_age_grace_s=20)
    client = await service.connect()
    await client.embed("the connection's age begins here")
    await asyncio.sleep(0.8)
    stream = await Stream.open(client)
    began = asyncio.get_running_loop().time()
    await stream.send(("a", "text"))
    await stream.results(1)
    # By now the core has sent GOAWAY.
    await asyncio.sleep(0.5)
    await stream.send(("b", "text"))
    assert [result.id for result in await stream.results(1)] == ["b"]
    failure = await stream.failure()
    lived_s = asyncio.get_running_loop().time() - began
    assert failure.reason == "SHUTTING_DOWN"
    assert lived_s >= 0.7  # a tenth less than a second, and however slow the opening was


async def test_a_half_closed_stream_may_use_its_grace(serve: Serve, backend: HashBackend) -> None:
    """A client that half-closed in time gets its answers and OK, even if the stream is too old."""
    service = await serve(backend=backend, max_connection_age_s=AGE_S)
    backend.hold()
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"))
    await stream.call.done_writing()
    await until(lambda: (reader := service.bidi._reader) and reader.done())
    await asyncio.sleep(2 * AGE_S)
    backend.release()
    assert [result.id for result in await stream.rest()] == ["a"]
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_a_client_learns_what_to_resend(serve: Serve) -> None:
    """Each input of an endless stream is either answered or named as unanswered, never both.

    A write that meets a closed connection may hide the reason, which was sent before.
    """
    service = await serve(max_connection_age_s=AGE_S)
    taken: list[int] = []
    answered: list[Any] = []

    def inputs() -> Iterator[tuple[int, str]]:
        for number in itertools.count():
            taken.append(number)
            yield number, "text"

    def run() -> None:
        with Client(service.address) as client:
            stream = client.embed_stream(inputs(), batch_size=8, reconnect_s=0)
            answered.extend(result.id for result in stream)

    with pytest.raises((ShuttingDownError, ConnectionFailedError)) as caught:
        await asyncio.to_thread(run)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert answered
    assert answered + list(caught.value.unanswered_ids) == taken


async def test_an_asynchronous_client_learns_what_to_resend(serve: Serve) -> None:
    """The same for grpc.aio, which may lose the reason at the stream's end."""
    service = await serve(max_connection_age_s=AGE_S)
    taken: list[int] = []
    answered: list[Any] = []

    async def inputs() -> AsyncIterator[tuple[int, str]]:
        for number in itertools.count():
            taken.append(number)
            yield number, "text"
            await asyncio.sleep(0)

    async with AsyncClient(service.address) as client:
        stream = client.embed_stream(inputs(), batch_size=8, reconnect_s=0)
        with pytest.raises((ShuttingDownError, ConnectionFailedError)) as caught:
            await _collect(stream, answered)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert answered
    assert answered + list(caught.value.unanswered_ids) == taken


async def test_a_stream_outlives_its_connections(serve: Serve) -> None:
    """Unless the caller forbids it, the client goes on with another call: no input is lost."""
    service = await serve(max_connection_age_s=AGE_S)
    answered: list[Any] = []
    stream: AsyncEmbedStream

    async def inputs() -> AsyncIterator[tuple[int, str]]:
        number = 0
        while stream.reconnect_count < 2:
            yield number, "text"
            number += 1
            await asyncio.sleep(0)

    async with AsyncClient(service.address, timeout_s=PATIENCE_S) as client:
        stream = client.embed_stream(inputs(), batch_size=8)
        await _collect(stream, answered)
    assert answered == list(range(len(answered)))
    assert answered


async def _collect(stream: AsyncEmbedStream, ids: list[Any]) -> None:
    async for result in stream:
        ids.append(result.id)  # noqa: PERF401 - kept when the stream fails


@pytest.mark.parametrize(
    ("age_s", "grace_s", "expected"),
    [(1800, 60, 1_860_000), (0.25, 0.5, 750), (31_536_000, 31_536_000, 2**31 - 1)],
)
async def test_the_core_waits_for_streams(age_s: float, grace_s: float, expected: int) -> None:
    """The core's grace covers the age and the grace of a stream that begins last."""
    settings = Settings(max_connection_age_s=age_s, max_connection_age_grace_s=grace_s)
    arguments: dict[str, Any] = dict(channel_arguments(settings, max_connections=1))
    assert arguments["grpc.max_connection_age_grace_ms"] == expected
    assert arguments["grpc.max_connection_age_ms"] == min(age_s * 1000, 2**31 - 1)
    # A number that is too large would raise an OverflowError.
    grpc.aio.server(options=list(arguments.items()))
