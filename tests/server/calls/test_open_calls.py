"""What clients that send or read too slowly can make a server hold, and for how long."""

import asyncio
import logging
import re
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from embedgrpc.server.calls.budget import Budget, Holder
from embedgrpc.server.calls.call_sweeper import CallSweeper
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.connections.raw_http2 import frame, headers, raw_connection
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import CROSS, EMBED, PATIENCE_S, until
from tests.server.services.test_health import SERVING, Watcher
from tests.server.streams import Stream

EMBED_PATH = b"/embedgrpc.v1.EmbeddingService/Embed"
UNARY_PATHS = (
    EMBED_PATH,
    b"/embedgrpc.v1.RerankService/Rerank",
    b"/embedgrpc.v1.ModelService/ListModels",
    b"/embedgrpc.v1.ModelService/GetModel",
    b"/grpc.health.v1.Health/Check",
    b"/grpc.health.v1.Health/Watch",
)
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
MIB = 1024 * 1024


@pytest.mark.parametrize("path", UNARY_PATHS, ids=bytes.decode)
async def test_a_call_without_a_message_is_refused(serve: Serve, path: bytes) -> None:
    """A unary call that half-closes without a message gets an error at once."""
    service = await serve(EMBED, CROSS)
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        answer = await connection.call(headers(path), b"")
    assert answer.status == INVALID_ARGUMENT
    assert b"without a message" in answer.headers[b"grpc-message"]
    await service.check_alive()


async def test_of_two_messages_the_first_is_answered(serve: Serve) -> None:
    """A unary call with a second message gets the response to the first, as gRPC does it."""
    service = await serve()
    first, second = (frame(pb.EmbedRequest(texts=[text]).SerializeToString()) for text in "ab")
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        answer = await connection.call(headers(EMBED_PATH), first + second)
        alone = await connection.call(headers(EMBED_PATH), first)
    assert (answer.status, answer.body) == (0, alone.body)


async def test_an_unfinished_message_ends_its_call(serve: Serve) -> None:
    """A call whose message stays unfinished is ended, and so is one without a message."""
    service = await serve(max_receive_s=0.3)
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        _, half = await connection.send(headers(EMBED_PATH), frame(b"ab")[:-1], end=False)
        _, none = await connection.send(headers(EMBED_PATH), end=False)
        stream_path = b"/embedgrpc.v1.EmbeddingService/StreamEmbed"
        _, stream = await connection.send(headers(stream_path), end=False)
        for answer in (half, none, stream):
            await answer.ended.wait()
            assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
            assert b"did not come in whole within 0.3 s" in answer.headers[b"grpc-message"]
    await until(lambda: not len(service.server.open_calls))
    assert service.server.open_calls.limits.requests.held == 0


async def test_slow_messages_give_way_to_others(serve: Serve) -> None:
    """A half-sent message that uses all the room of its connection gives way to a new call."""
    service = await serve(max_held_request_bytes=2 * MIB, max_request_bytes=MIB // 2)
    message = frame(pb.EmbedRequest(texts=["a"]).SerializeToString())
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        _, half = await connection.send(headers(EMBED_PATH), frame(b"ab")[:-1], end=False)
        answer = await connection.call(headers(EMBED_PATH), message)
        assert answer.status == 0
        assert half.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        # However many there are, another connection does not wait for them.
        for _ in range(8):
            await connection.send(headers(EMBED_PATH), frame(b"ab")[:-1], end=False)
        await connection.ping()
        await service.client.embed("a", timeout=1)


async def test_a_response_that_is_not_read_is_dropped(
    serve: Serve, backend: HashBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`max_unary_s` ends a call whose client reads no response, and releases what it held."""
    monkeypatch.setattr("embedgrpc.server.calls.open_call.READ_S_MIN", 0.1)
    service = await serve(backend=backend, max_unary_s=1)
    calls = service.server.open_calls
    message = frame(pb.EmbedRequest(texts=["equal"] * 500).SerializeToString())
    async with raw_connection(service.address, window=0) as connection:
        await connection.ping()
        async with asyncio.timeout(PATIENCE_S):
            answers = [(await connection.send(headers(EMBED_PATH), message))[1] for _ in range(4)]
            await until(lambda: calls.limits.responses.held > 4 * 500 * 36 * 4)
            # gRPC keeps the last call until the next one comes.
            await asyncio.gather(*(answer.ended.wait() for answer in answers[:-1]))
            await service.client.status("")
            await answers[-1].ended.wait()
        await until(lambda: not len(calls))
        assert calls.limits.responses.held == 0
        assert {answer.status for answer in answers} == {grpc.StatusCode.CANCELLED.value[0]}
    await service.check_alive()


async def test_a_watcher_that_reads_nothing_is_ended(serve: Serve) -> None:
    """A health watch whose client reads no status is ended like a stream."""
    service = await serve(stream_idle_timeout_s=0.3)
    watch = frame(health_pb2.HealthCheckRequest().SerializeToString())
    path = headers(b"/grpc.health.v1.Health/Watch")
    async with raw_connection(service.address, window=0) as connection:
        await connection.ping()
        _, answer = await connection.send(path, watch)
        await until(lambda: len(service.server.open_calls))
        await until(lambda: not len(service.server.open_calls))
        await service.client.status("")
        async with asyncio.timeout(PATIENCE_S):
            await answer.ended.wait()


async def test_an_idle_reflection_stream_is_ended(serve: Serve) -> None:
    """Reflection waits no longer for its client than other streams do."""
    service = await serve(stream_idle_timeout_s=0.3)
    asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    path = headers(b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        _, answer = await connection.send(path, frame(asked), end=False)
        await answer.ended.wait()
    assert answer.body
    assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="n" * 5000)),
        (b"/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest(service="n" * 5000)),
        (
            b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="n" * 5000),
        ),
    ],
)
async def test_a_long_name_is_refused(serve: Serve, path: bytes, message: object) -> None:
    """Where messages contain only names, one that is too long is refused."""
    service = await serve()
    data: bytes = message.SerializeToString()  # type: ignore[attr-defined]
    async with raw_connection(service.address) as connection, asyncio.timeout(PATIENCE_S):
        answer = await connection.call(headers(path), frame(data))
    assert answer.status == INVALID_ARGUMENT
    assert b"bytes; the limit of this method is 4096" in answer.headers[b"grpc-message"]


async def test_one_connection_cannot_take_all_places(serve: Serve) -> None:
    """Calls beyond the share of a connection are refused; another connection has room."""
    service = await serve(max_calls=16)
    streams = [await Stream.open(service.client) for _ in range(6)]
    failure = await Stream(service.client).failure()
    assert (failure.code, failure.label) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    other = await service.connect()
    await other.embed("a")
    for stream in streams:
        await stream.end()
    await service.client.embed("a")


async def test_calls_without_a_message_do_not_hold_up_a_stop(serve: Serve) -> None:
    """A stop does not wait out its grace for calls that cannot go on."""
    service = await serve(EMBED, CROSS, shutdown_grace_s=PATIENCE_S, shutdown_timeout_s=600)
    channel: Any = service.client.channel
    calls = [channel.stream_unary(path.decode())(iter(())) for path in UNARY_PATHS[:-1]]
    failures = [await failure_of(call) for call in calls]
    assert {failure.code for failure in failures} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert {failure.label for failure in failures} == {"NO_MESSAGE"}
    began = time.monotonic()
    await service.server.__aexit__(None, None, None)
    assert time.monotonic() - began < PATIENCE_S / 2


async def test_streams_release_what_they_hold(serve: Serve, backend: HashBackend) -> None:
    """A stream releases the bytes of its messages and answers as they are answered."""
    service = await serve(backend=backend)
    calls = service.server.open_calls
    stream = await Stream.open(service.client)
    backend.hold()
    await stream.send(*((str(number), f"text {number}") for number in range(16)))
    await until(
        lambda: calls.limits.requests.held > 16 * 6 and calls.limits.responses.held > 16 * 36 * 4
    )
    backend.release()
    await stream.results(16)
    await until(lambda: not calls.limits.requests.held and not calls.limits.responses.held)
    assert await stream.end() == []
    await until(lambda: not len(calls))
    assert calls.limits.streams.held == calls.limits.places.held == 0


async def test_memory_is_returned_after_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory goes back to the system once calls have released most of a burst, and once."""
    trims: list[None] = []
    monkeypatch.setattr(
        "embedgrpc.server.calls.call_sweeper.trim_memory", lambda: trims.append(None)
    )
    calls, caller = OpenCalls(Settings()), Holder("one", "one:1")
    sweeper = CallSweeper(calls)
    for held_bytes, trimmed in ((MIB, 0), (20 * MIB, 0), (6 * MIB, 0), (MIB, 1), (0, 1)):
        calls.limits.requests.force(caller, held_bytes - calls.limits.requests.held)
        await sweeper._return_memory()
        assert len(trims) == trimmed


def test_shares() -> None:
    """One connection gets four ninths, one address two thirds, and other addresses the rest."""
    budget = Budget(900)
    greedy = [Holder("greedy", str(number)) for number in range(100)]
    assert budget.try_take(greedy[0], 400)
    assert not budget.try_take(greedy[0], 1)
    for caller in greedy[1:]:
        while budget.try_take(caller, 1):
            pass
    assert 590 <= budget.held <= 600
    other = Holder("other", "0")
    assert budget.try_take(other, 100)
    budget.give_back(greedy[0], 400)
    assert budget.try_take(other, 100)


async def test_callers_that_wait_take_turns() -> None:
    """Callers are served in turn, and the calls of each in order."""
    budget = Budget(900)
    one, two = Holder("a", "one"), Holder("a", "two")
    budget.force(one, 900)
    served: list[str] = []

    async def take(caller: Holder, name: str) -> None:
        await budget.take(caller, 100)
        served.append(name)

    tasks = [
        asyncio.create_task(take(caller, name))
        for caller, name in ((one, "1a"), (one, "1b"), (two, "2a"), (two, "2b"))
    ]
    await asyncio.sleep(0)
    cancelled = asyncio.create_task(take(two, "never"))
    await asyncio.sleep(0)
    cancelled.cancel()
    budget.give_back(one, 900)
    await asyncio.gather(*tasks, cancelled, return_exceptions=True)
    assert served == ["1a", "2a", "1b", "2b"]
    assert budget.held == 400
    for caller in (one, two):
        budget.give_back(caller, 200)
    assert budget.held == 0
    assert budget.try_take(two, 400)


async def test_a_client_that_leaves_is_no_error(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that close while they are answered leave no error in the log."""
    service = await serve()
    caplog.set_level(logging.INFO)
    message = frame(pb.EmbedRequest(texts=["equal"] * 500).SerializeToString())
    calls = service.server.open_calls
    for _ in range(5):
        async with raw_connection(service.address, window=0) as connection:
            await connection.ping()
            for _ in range(4):
                await connection.send(headers(EMBED_PATH), message)
            await until(lambda: len(calls) == 4 and calls.limits.responses.held > 4 * 500 * 36 * 4)
        await until(lambda: not len(calls))
    # On a busy machine the loop may be late.
    records = [one for one in caplog.records if one.name != "embedgrpc.server.telemetry.loop_lag"]
    assert not [one for one in records if one.levelno >= logging.WARNING]


async def test_a_watch_holds_no_room(serve: Serve) -> None:
    """A health watch does not hold the room of the largest request for hours."""
    service = await serve(max_request_bytes=MIB, max_held_request_bytes=4 * MIB)
    watcher = Watcher(service.client, "")
    assert await watcher.next() == SERVING
    other = await service.connect()
    await other.embed("a" * (MIB // 2))
    calls = service.server.open_calls
    assert (calls.limits.requests.held, calls.limits.small_requests.held) == (0, 0)


async def test_health_is_checked_without_room_or_places(serve: Serve) -> None:
    """A health check does not wait for calls with texts, however many there are."""
    service = await serve(max_calls=16)
    calls, other = service.server.open_calls, Holder("elsewhere", "elsewhere:1")
    calls.limits.requests.force(other, calls.limits.requests.total)
    calls.limits.places.force(other, calls.limits.places.total)
    assert await service.client.status("") == SERVING
    failure = await failure_of(service.client.embed("a"))
    assert failure.label == "TOO_MANY_CALLS"


async def test_idle_streams_give_way_to_active_ones(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many streams wait for their clients, one with a message is read.

    A stream that has not been idle for long enough does not give way.
    """
    monkeypatch.setattr("embedgrpc.server.calls.call_sweeper._IDLE_S_MIN", 2)
    service = await serve()
    calls = service.server.open_calls
    fit = calls.limits.streams.largest(calls.limits.streams.total) // calls.limits.waiting_bytes
    streams = [await Stream.open(service.client) for _ in range(fit + 1)]
    active = streams[-1]
    await active.send(("a", "a"))
    assert [result.id for result in await active.results(1)] == ["a"]
    failure = await streams[0].failure()
    assert failure.label == "STREAM_GAVE_WAY"
    (idle_s,) = re.findall(r"sent no message for ([\d.]+) s", failure.details)
    assert float(idle_s) >= 2
    # One was enough for the one that waited.
    await streams[1].send(("b", "b"))
    assert [result.id for result in await streams[1].results(1)] == ["b"]
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_waits_for_room_is_not_idle(serve: Serve) -> None:
    """A stream that the server has no room to read is not idle."""
    service = await serve(stream_idle_timeout_s=0.5)
    calls, other = service.server.open_calls, Holder("elsewhere", "elsewhere:1")
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"))
    await stream.results(1)
    calls.limits.streams.force(other, calls.limits.streams.total)
    # The read that waits already has its room; the next one finds none.
    await stream.send(("b", "b"))
    await stream.results(1)
    await stream.send(("c", "c"))
    await until(lambda: calls.limits.streams.waiting(since=time.monotonic() - 1))
    calls.limits.streams.give_back(other, calls.limits.streams.total)
    assert [result.id for result in await stream.results(1)] == ["c"]
    await stream.end()
