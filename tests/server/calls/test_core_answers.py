"""Calls that gRPC itself answers, without ErrorInfo: those that the contract lists."""

import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from embedgrpc.v1 import embedding_service_pb2 as embedding
from tests.server.connections.raw_http2 import Headers, frame, headers, raw_connection
from tests.server.contract.test_labels import PROTO
from tests.server.failures import failure_of
from tests.server.service import EMBED, PATIENCE_S, Client, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = b"/embedgrpc.v1.EmbeddingService/Embed"
GOOD = frame(embedding.EmbedRequest(texts=["a"]).SerializeToString())
COMPRESSED = b"\x01" + GOOD[1:]
# The statuses in the comment of ErrorReason.
LISTED = set(re.findall(r"^// - ([A-Z_]+)[:,]", PROTO, re.MULTILINE))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server for all rows: each must leave it working."""
    async with serving(settings_for(EMBED, cache_dir=cache_dir)) as started:
        yield started


def _without(key: bytes) -> Headers:
    return [pair for pair in headers(PATH) if pair[0] != key]


def _with(key: bytes, value: bytes) -> Headers:
    return (
        [*_without(key), (key, value)]
        if key[:1] != b":"
        else [(key, value) if pair[0] == key else pair for pair in headers(PATH)]
    )


CORE: dict[str, tuple[Headers, bytes, str]] = {
    "unknown method": (_with(b":path", b"/a/B"), GOOD, "UNIMPLEMENTED"),
    "no path": (_with(b":path", b""), GOOD, "UNIMPLEMENTED"),
    "path that is not UTF-8": (_with(b":path", b"/\xff"), GOOD, "UNKNOWN"),
    "too large": (headers(PATH), frame(b"", length=1 << 28), "RESOURCE_EXHAUSTED"),
    "unknown compression": (_with(b"grpc-encoding", b"snappy"), COMPRESSED, "INTERNAL"),
    "damaged compression": (_with(b"grpc-encoding", b"gzip"), COMPRESSED, "INTERNAL"),
    "bad deadline": (_with(b"grpc-timeout", b"soon"), GOOD, "INTERNAL"),
    "bad Base64": (_with(b"x-bin", b"!"), GOOD, "INTERNAL"),
    "upper case": (_with(b"X-Key", b"value"), GOOD, "INTERNAL"),
    "unknown scheme": (_with(b":scheme", b"ftp"), GOOD, "INTERNAL"),
    "no time": (_with(b"grpc-timeout", b"0m"), GOOD, "DEADLINE_EXCEEDED"),
}


@pytest.mark.parametrize("row", CORE.values(), ids=CORE)
async def test_calls_that_grpc_refuses(service: Service, row: tuple[Headers, bytes, str]) -> None:
    """Each has a status that the contract lists, and no details."""
    request, message, status = row
    async with raw_connection(service.address) as connection:
        answer = await connection.call(request, message)
    assert answer.status == grpc.StatusCode[status].value[0]
    assert status in LISTED
    assert b"grpc-status-details-bin" not in answer.headers
    await service.check_alive()


OURS: dict[str, tuple[Headers, bytes, str]] = {
    "unfinished message": (headers(PATH), frame(b"a", length=9), "NO_MESSAGE"),
    "no message": (headers(PATH), b"", "NO_MESSAGE"),
    "other message": (headers(PATH), frame(b"\x0a\x01"), "MALFORMED_MESSAGE"),
    "another content type": (
        _with(b"content-type", b"application/json"), frame(b""), "NO_INPUTS",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", OURS.values(), ids=OURS)
async def test_calls_that_the_server_refuses(
    service: Service, row: tuple[Headers, bytes, str]
) -> None:
    """All else that is odd about a call comes with details."""
    request, message, label = row
    async with raw_connection(service.address) as connection:
        answer = await connection.call(request, message)
    assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    packed = answer.headers[b"grpc-status-details-bin"]
    assert label.encode() in base64.b64decode(packed + b"==")
    await service.check_alive()


@pytest.mark.parametrize("request_headers", [_without(b"te"), _with(b":method", b"GET")])
async def test_requests_that_are_not_of_grpc_are_reset(
    service: Service, request_headers: Headers
) -> None:
    """HTTP/2 that is no gRPC has no status at all."""
    async with raw_connection(service.address) as connection:
        answer = await connection.call(request_headers, GOOD)
    assert answer.status is None
    assert answer.reset is not None
    await service.check_alive()


async def test_too_much_metadata(service: Service) -> None:
    """More than 16 KiB is RESOURCE_EXHAUSTED."""
    client = await service.connect(grpc__max_metadata_size=10**6)
    call = client.embedding.Embed(
        embedding.EmbedRequest(texts=["a"]), metadata=[("x-large", "v" * 20_000)]
    )
    failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert failure.details.startswith("received metadata size exceeds")
    await service.check_alive()


async def test_no_connection(cache_dir: Path) -> None:
    """A server that is gone is UNAVAILABLE, before a call and in the middle of one."""
    async with serving(settings_for(EMBED, cache_dir=cache_dir)) as started:
        address = started.address
    async with (client := Client(address)).channel:
        failure = await failure_of(client.embed("a"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    assert {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"} <= LISTED


async def test_a_client_that_leaves(service: Service) -> None:
    """What the client itself ends is CANCELLED or DEADLINE_EXCEEDED, without details."""
    stream = service.client.embedding.StreamEmbed(timeout=PATIENCE_S)
    stream.cancel()
    assert await stream.code() is grpc.StatusCode.CANCELLED
    late = service.client.embedding.StreamEmbed(timeout=0.01)
    failure = await failure_of(late.read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "")
    await service.check_alive()
