import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.connections.raw_http2 import (
    PREFACE,
    Answer,
    RawConnection,
    frame,
    headers,
    raw_connection,
    raw_socket,
)
from tests.server.hash_backend import HashBackend
from tests.server.server_process import started
from tests.server.service import PATIENCE_S, Service
from tests.server.services.test_health import NOT_SERVING, SERVING, Watcher

in_module = pytest.mark.asyncio(loop_scope="module")

EMBED = b"/embedgrpc.v1.EmbeddingService/Embed"
REQUEST = pb.EmbedRequest(texts=["a text"]).SerializeToString()
OK = grpc.StatusCode.OK.value[0]
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
INTERNAL = grpc.StatusCode.INTERNAL.value[0]
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def _serves(connection: RawConnection) -> bool:
    answer = await connection.call(headers(EMBED), frame(REQUEST))
    return answer.status == OK


@in_module
async def test_a_plain_call(plain: Service) -> None:
    """The good call of this file is served."""
    async with _patience(), raw_connection(plain.address) as connection:
        answer = await connection.call(headers(EMBED), frame(REQUEST))
        assert answer.status == OK
        response = pb.EmbedResponse.FromString(answer.body[5:])
        assert response == await plain.client.embed("a text")


@pytest.mark.parametrize(
    "path",
    [b"/\xff\xfe", b"/embedgrpc.v1.EmbeddingService/\xc3\x28", b"\xff", b"", b"no/slash", b"*"],
)
async def test_a_malformed_path(serve: Serve, backend: HashBackend, path: bytes) -> None:
    """A call with a malformed path affects neither calls in flight nor later ones."""
    service = await serve(backend=backend)
    watcher = Watcher(service.client, "")
    assert await watcher.next() == SERVING
    backend.hold()
    slow = asyncio.ensure_future(service.client.embed("slow"))
    assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    async with _patience(), raw_connection(service.address) as connection:
        for _ in range(3):
            answer = await connection.call(headers(path), frame(REQUEST))
            assert answer.status != OK
        backend.release()
        assert await _serves(connection)
    await slow
    await service.check_alive()
    await service.server.drain()
    assert await watcher.next() == NOT_SERVING


def _lie(length: int) -> bytes:
    return frame(REQUEST, length=length)


PARTS: dict[str, tuple[bytes, ...]] = {
    "no body": (),
    "an empty frame": (b"",),
    "part of a prefix": (b"\x00\x00\x00",),
    "a prefix alone": (frame(b"", length=100),),
    "a length that is too large": (_lie(len(REQUEST) + 50),),
    "a length that is too small": (_lie(2),),
    "a length of 4 GiB": (_lie(2**32 - 1),),
    "a flag that does not exist": (b"\x7f" + frame(REQUEST)[1:],),
    "compressed without an encoding": (b"\x01" + frame(REQUEST)[1:],),
    "two messages": (frame(REQUEST), frame(REQUEST)),
    "two messages in a frame": (frame(REQUEST) + frame(REQUEST),),
    "one byte at a time": tuple(bytes([byte]) for byte in frame(REQUEST)),
}
# gRPC never answers these, and keeps them until the connection closes.
UNANSWERED = {
    "no body", "an empty frame", "part of a prefix", "a prefix alone", "a length that is too large",
}  # fmt: skip
SERVED = {
    "two messages", "two messages in a frame", "one byte at a time",
    "compressed without an encoding",
}  # fmt: skip


@in_module
@pytest.mark.parametrize("name", PARTS)
async def test_a_malformed_body(plain: Service, name: str) -> None:
    """The connection and the server go on after any body."""
    async with _patience(), raw_connection(plain.address) as connection:
        # This one stays open meanwhile.
        await connection.send(headers(EMBED), *PARTS[name], end=False)
        stream, answer = await connection.send(headers(EMBED), *PARTS[name])
        if name in UNANSWERED:
            await connection.ping()
            assert not answer.ended.is_set()
            await connection.reset(stream)
        else:
            await answer.ended.wait()
            assert (answer.status == OK) == (name in SERVED)
        assert await _serves(connection)
    await plain.check_alive()


@in_module
@pytest.mark.parametrize("size", [7_000, 12_000])
async def test_headers_within_the_limit_always_pass(plain: Service, size: int) -> None:
    """Large tokens, as a mesh adds them, are accepted every time."""
    padding = (b"x-padding", b"p" * size)
    async with _patience():
        for wait_for_settings in (True, False):
            async with raw_connection(plain.address) as connection:
                if wait_for_settings:
                    await connection.ping()
                for _ in range(8):
                    answer = await connection.call(headers(EMBED, padding), frame(REQUEST))
                    assert answer.status == OK
    await plain.check_alive()


@in_module
@pytest.mark.parametrize("size", [17_000, 40_000])
async def test_headers_over_the_limit_never_pass(plain: Service, size: int) -> None:
    """Larger headers are refused every time; the server goes on."""
    padding = (b"x-padding", b"p" * size)
    async with _patience(), raw_connection(plain.address) as connection:
        assert await _serves(connection)
        for _ in range(4):
            answer = await connection.call(headers(EMBED, padding), frame(REQUEST))
            assert answer.status != OK
        assert await _serves(connection) or connection.closed.is_set()
    await plain.check_alive()


@in_module
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"x-not-text", b"\xff\xfe\x00", OK),
        (b"x-not-base64-bin", b"!!!", INTERNAL),
        (b"grpc-timeout", b"soon", INTERNAL),
        (b"grpc-timeout", b"0n", DEADLINE_EXCEEDED),
        (b"grpc-encoding", b"nonsense", INTERNAL),
        (b"traceparent", b"\xff" * 55, OK),
        (b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", OK),
        (b"embedgrpc-max-response-bytes", b"\xd9\xa3", INVALID_ARGUMENT),
        (b"x-many", b"", OK),
    ],
)
async def test_odd_headers(plain: Service, name: bytes, value: bytes, status: int) -> None:
    """A malformed header at most fails its own call; the connection stays."""
    async with _patience(), raw_connection(plain.address) as connection:
        answer = await connection.call(headers(EMBED, (name, value)), frame(REQUEST))
        assert answer.status == status
        assert await _serves(connection)
    await plain.check_alive()


@pytest.mark.parametrize("size", [17_000, pytest.param(200_000, marks=pytest.mark.long)])
async def test_more_metadata_than_the_limit(cache_dir: Path, size: int) -> None:
    """A client that ignores the announced limit is refused; the connection stays.

    In some processes gRPC's core refuses it first; in that of the command it does not.
    """
    async with started(cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        async with _patience(), raw_connection(address) as connection:
            for path in (EMBED, b"/grpc.health.v1.Health/Check"):
                padding = (b"x-big", b"v" * size)
                answer = await connection.call(headers(path, padding), frame(REQUEST))
                assert answer.status in (INVALID_ARGUMENT, RESOURCE_EXHAUSTED)
            assert await _serves(connection)


async def test_rapid_resets(serve: Serve) -> None:
    """A thousand calls that are reset at once leave nothing behind."""
    service = await serve()
    tasks = len(asyncio.all_tasks())
    async with _patience():
        async with raw_connection(service.address) as connection:
            for _ in range(1000):
                if connection.closed.is_set():
                    break
                stream, _ = await connection.send(headers(EMBED), frame(REQUEST), end=False)
                await connection.reset(stream)
            await service.check_alive()
        while len(asyncio.all_tasks()) > tasks:
            # Each call wakes the loop, so that cancelled handlers can end.
            await service.client.status("")
    assert service.admission().inputs == 0
    await service.check_alive()


async def test_more_calls_than_a_connection_may_have(serve: Serve) -> None:
    """The client learns the limit of concurrent calls, and may reach it."""
    service = await serve(max_connection_streams=10)
    async with _patience(), raw_connection(service.address) as connection:
        await connection.ping()
        answers: list[Answer] = []
        for _ in range(10):
            _, answer = await connection.send(headers(EMBED), end=False)
            answers.append(answer)
        await connection.ping()
        assert not any(answer.ended.is_set() for answer in answers)
        assert connection.max_streams == 10
        await service.check_alive()


@in_module
@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP/1.1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), id="TLS"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(PREFACE + b"\xff" * 1000, id="a preface and garbage"),
        pytest.param(PREFACE + b"\x00\x40\x00\x09\x00\x00\x00\x00\x01", id="CONTINUATION first"),
    ],
)
async def test_another_protocol(plain: Service, opening: bytes) -> None:
    """A client that does not speak HTTP/2 is disconnected."""
    async with _patience(), raw_socket(plain.address) as (reader, writer):
        writer.write(opening)
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass  # a reset is fine, too
    await plain.check_alive()


@in_module
async def test_half_a_preface(plain: Service) -> None:
    """A connection with an unfinished preface does not block others."""
    async with _patience(), raw_socket(plain.address) as (_, half):
        half.write(PREFACE[:10])
        async with raw_socket(plain.address), raw_socket(plain.address):
            await plain.check_alive()
    await plain.check_alive()
