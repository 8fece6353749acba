"""Attacks on the memory that requests or responses take up in the server."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.attacks.attack import MIB, Attack
from tests.server.connections.raw_http2 import RawConnection, frame, headers, raw_connection

_MESSAGE_BYTES = 4 * MIB - 1024
_CONNECTIONS = 2
_CALLS = 100
_EMBED = b"/embedgrpc.v1.EmbeddingService/Embed"
_STREAM_EMBED = b"/embedgrpc.v1.EmbeddingService/StreamEmbed"
_WATCH = b"/grpc.health.v1.Health/Watch"
_CHECK = b"/grpc.health.v1.Health/Check"
_REFLECT = b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def _keep(connection: RawConnection, path: bytes, first: bytes, rest: bytes) -> None:
    """Open a call and send what the server takes of it; open the next when it has ended."""
    while not connection.closed.is_set():
        stream, answer = await connection.send(headers(path), first, end=False)
        await connection.pour(stream, rest)
        await answer.ended.wait()


async def _hold(
    target: str, seconds: float, path: bytes, *, first: bytes, rest: bytes, calls: int = _CALLS
) -> str:
    """Keep calls open on a few connections."""
    async with AsyncExitStack() as resources:
        tasks = []
        for _ in range(_CONNECTIONS):
            connection = await resources.enter_async_context(raw_connection(target))
            await connection.ping()
            for _ in range(calls):
                tasks.append(asyncio.create_task(_keep(connection, path, first, rest)))  # noqa: PERF401
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return f"{_CONNECTIONS} x {calls} calls held open"


def _half(message: bytes) -> bytes:
    """Frame a message and keep its last byte back."""
    return frame(message)[:-1]


async def _half_sent(target: str, seconds: float) -> str:
    return await _hold(target, seconds, _EMBED, first=b"", rest=_half(bytes(_MESSAGE_BYTES)))


async def _half_sent_streams(target: str, seconds: float) -> str:
    setup = frame(pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup()).SerializeToString())
    message = bytes(_MESSAGE_BYTES)
    return await _hold(target, seconds, _STREAM_EMBED, first=setup, rest=_half(message))


async def _full_streams(target: str, seconds: float) -> str:
    setup = pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup())
    texts = [
        pb.StreamEmbedInput(id=str(number), text="the same text " * 1000) for number in range(240)
    ]
    messages = [setup.SerializeToString()]
    for begin in range(0, 240, 60):
        batch = pb.StreamEmbedBatch(inputs=texts[begin : begin + 60])
        messages.append(pb.StreamEmbedRequest(batch=batch).SerializeToString())
    rest = b"".join(map(frame, messages))
    return await _hold(target, seconds, _STREAM_EMBED, first=b"", rest=rest, calls=20)


async def _long_watches(target: str, seconds: float) -> str:
    name = health_pb2.HealthCheckRequest(service="n" * _MESSAGE_BYTES).SerializeToString()
    return await _hold(target, seconds, _WATCH, first=b"", rest=frame(name))


async def _long_symbols(target: str, seconds: float) -> str:
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="n" * _MESSAGE_BYTES)
    rest = frame(asked.SerializeToString())
    return await _hold(target, seconds, _REFLECT, first=b"", rest=rest, calls=30)


async def _unread(target: str, seconds: float) -> str:
    """Send calls with large answers, and take none."""
    text = "the same text " * 290
    request = frame(pb.EmbedRequest(texts=[text] * 1000).SerializeToString())
    async with raw_connection(target, window=0) as connection:
        await connection.ping()
        tasks = [
            asyncio.create_task(_keep(connection, _EMBED, b"", request)) for _ in range(_CALLS)
        ]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return f"{_CALLS} answers not taken"


async def _no_message(target: str, seconds: float) -> str:
    """Half-close unary calls without a message."""
    until = time.monotonic() + seconds
    answered = 0
    async with raw_connection(target) as connection:
        while time.monotonic() < until:
            for path in (_EMBED, _CHECK):
                _, answer = await connection.send(headers(path), b"")
                await answer.ended.wait()
                answered += answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    if not answered:
        raise AssertionError("no call was answered")
    return f"{answered} refusals"


async def _refused(target: str, seconds: float, request: pb.EmbedRequest, callers: int) -> str:
    """Send calls that are refused, as fast as they are."""
    data = request.SerializeToString()
    until = time.monotonic() + seconds
    refused = 0

    async def ask(call: Any) -> None:
        nonlocal refused
        while time.monotonic() < until:
            try:
                await call(data, timeout=max(until - time.monotonic(), 0.1))
            except grpc.aio.AioRpcError:
                refused += 1

    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(_EMBED.decode())
        await asyncio.gather(*(ask(call) for _ in range(callers)))
    return f"{refused} refusals"


async def _long_names(target: str, seconds: float) -> str:
    return await _refused(target, seconds, pb.EmbedRequest(model="n" * _MESSAGE_BYTES), 4)


async def _many_texts(target: str, seconds: float) -> str:
    texts = [""] * (_MESSAGE_BYTES // 2)
    return await _refused(target, seconds, pb.EmbedRequest(texts=texts), 4)


async def _overload(target: str, seconds: float) -> str:
    texts = [f"{number} words " * 300 for number in range(1000)]
    return await _refused(target, seconds, pb.EmbedRequest(texts=texts), 32)


ATTACKS = (
    Attack("half-sent", "unary messages of 4 MiB without their last byte", _half_sent),
    Attack("half-sent-streams", "the same on streams", _half_sent_streams, test_s=1.5),
    Attack(
        "full-streams", "streams with all that they may send at once", _full_streams, test_s=1.5
    ),
    Attack("long-watches", "health watches of names of 4 MiB", _long_watches, test_s=1.5),
    Attack("long-symbols", "reflection of symbols of 4 MiB", _long_symbols, test_s=1.5),
    Attack("unread", "large answers that are not taken", _unread, test_s=4.0),
    Attack("no-message", "unary calls that end without a message", _no_message, test_s=1.0),
    Attack("long-names", "models with names of 4 MiB", _long_names, test_s=1.5),
    Attack("many-texts", "two million empty texts", _many_texts, test_s=1.5),
    Attack("refused", "calls of 1,000 long texts that are refused", _overload),
)
