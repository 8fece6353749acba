"""What a proxy in front may read differently, and what HTTP leaves to the server."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.server.conftest import Serve
from tests.server.http.test_hostile import LIVE
from tests.server.service import PATIENCE_S, Service, serving, settings_for

BODY = b'{"input": "a"}'
JSON = b"content-type: application/json"
LENGTH = b"content-length: 14"
CHUNKS = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"


def post(*headers: bytes, body: bytes = BODY, version: bytes = b"HTTP/1.1") -> bytes:
    """Return a request for embeddings."""
    lines = (b"POST /v1/embeddings " + version, b"host: x", *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def with_body(body: bytes) -> bytes:
    """Return a request with a body of the right length."""
    return post(JSON, b"content-length: %d" % len(body), body=body)


# What is sent, the status, and whether the connection stays open.
TABLE: dict[str, tuple[bytes, int, bool]] = {
    "plain": (post(JSON, LENGTH), 200, True),
    "in chunks": (post(JSON, b"transfer-encoding: Chunked", body=CHUNKS), 200, True),
    "gzip in chunks": (post(JSON, b"transfer-encoding: gzip, chunked", body=CHUNKS), 501, False),
    "chunked twice": (post(JSON, b"transfer-encoding: chunked, chunked", body=CHUNKS), 400, False),
    "two transfer-encodings": (
        post(JSON, b"transfer-encoding: gzip", b"transfer-encoding: chunked", body=CHUNKS),
        400,
        False,
    ),
    "identity": (post(JSON, b"transfer-encoding: identity", LENGTH), 400, False),
    "disguised": (post(JSON, b"transfer-encoding: \x0bchunked", LENGTH), 400, False),
    "TE after CL": (post(JSON, LENGTH, b"transfer-encoding: chunked", body=CHUNKS), 400, False),
    "TE before CL": (post(JSON, b"transfer-encoding: chunked", LENGTH, body=CHUNKS), 400, False),
    "two equal lengths": (post(JSON, LENGTH, LENGTH), 400, False),
    "two other lengths": (post(JSON, LENGTH, b"content-length: 15"), 400, False),
    "a list of lengths": (post(JSON, b"content-length: 14, 14"), 400, False),
    "a signed length": (post(JSON, b"content-length: +14"), 400, False),
    "a length below zero": (post(JSON, b"content-length: -14"), 400, False),
    "a length in hex": (post(JSON, b"content-length: 0xe"), 400, False),
    "a length beyond 64 bits": (post(JSON, b"content-length: " + b"9" * 23), 400, False),
    "a space before the colon": (post(JSON, b"content-length : 14"), 400, False),
    "a folded header": (post(JSON, LENGTH, b"x: a\r\n b"), 400, False),
    "a gigabyte": (post(JSON, b"content-length: 1000000000", body=b""), 413, False),
    "a chunk below zero": (
        post(JSON, b"transfer-encoding: chunked", body=b"-" + CHUNKS),
        400,
        False,
    ),
    "a chunk beyond 64 bits": (
        post(JSON, b"transfer-encoding: chunked", body=b"f" * 17 + CHUNKS),
        400,
        False,
    ),
    "chunks with LF": (
        post(JSON, b"transfer-encoding: chunked", body=CHUNKS.replace(b"\r", b"")),
        400,
        False,
    ),
    "a length in the trailer": (
        post(JSON, b"transfer-encoding: chunked", body=CHUNKS[:-2] + LENGTH + b"\r\n\r\n"),
        400,
        False,
    ),
    "charset utf-8": (post(JSON + b'; charset="UTF-8"', LENGTH), 200, True),
    "charset ascii": (post(JSON + b"; charset=us-ascii", LENGTH), 200, True),
    "charset latin-1": (post(JSON + b"; charset=iso-8859-1", LENGTH), 415, False),
    "charset utf-16": (post(JSON + b"; charset=utf-16", LENGTH), 415, False),
    "another type": (post(b"content-type: text/plain", LENGTH), 415, False),
    "two types": (post(JSON, JSON, LENGTH), 400, False),
    "compressed": (post(JSON, LENGTH, b"content-encoding: gzip"), 415, False),
    "HTTP/0.9": (b"GET /health/live\r\n\r\n", 505, False),
    "HTTP/0.9, named": (b"GET /health/live HTTP/0.9\r\nhost: x\r\n\r\n", 505, False),
    "HTTP/1.0": (post(JSON, LENGTH, version=b"HTTP/1.0"), 200, False),
    "HTTP/1.0 with an expectation": (
        post(JSON, LENGTH, b"expect: 100-continue", version=b"HTTP/1.0"),
        200,
        False,
    ),
    "HTTP/1.0 in chunks": (
        post(JSON, b"transfer-encoding: chunked", body=CHUNKS, version=b"HTTP/1.0"),
        400,
        False,
    ),
    "HTTP/1.2": (post(JSON, LENGTH, version=b"HTTP/1.2"), 400, False),
    "HTTP/2.0": (post(JSON, LENGTH, version=b"HTTP/2.0"), 505, False),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, False),
    "an unknown expectation": (post(JSON, LENGTH, b"expect: more"), 417, False),
    "no host": (b"GET /health/live HTTP/1.1\r\n\r\n", 400, False),
    "two hosts": (post(JSON, LENGTH, b"host: y"), 400, False),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n", 501, False),
    "TRACE": (b"TRACE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 405, True),
    "an unknown method": (b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400, False),
    "an absolute target": (b"GET http://y/health/live HTTP/1.1\r\nhost: x\r\n\r\n", 200, True),
    "an upgrade to HTTP/2": (
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        200,
        True,
    ),
    "half a pair": (with_body(rb'{"input": "\ud800"}'), 400, True),
    "half a pair, the second": (with_body(rb'{"input": "\udc00"}'), 400, True),
    "half a pair in a name": (with_body(rb'{"input": "a", "model": "\ud800"}'), 400, True),
    "half a pair in a key": (with_body(rb'{"input": "a", "\ud800": 1}'), 400, True),
    "half a pair in bytes": (with_body(b'{"input": "\xed\xa0\x80"}'), 400, True),
    "half a pair in the path": (b"GET /%ed%a0%80 HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    "no UTF-8": (with_body(b'{"input": "\xff"}'), 400, True),
    "a byte order mark": (with_body(b"\xef\xbb\xbf" + BODY), 400, True),
    "NaN": (with_body(b'{"input": "a", "dimensions": NaN}'), 400, True),
    "infinity": (with_body(b'{"input": "a", "dimensions": 1e999}'), 400, True),
    "deep": (with_body(b'{"input": ' + b"[" * 100_000), 400, True),
    "deep, unknown": (with_body(b'{"input": "a", "x": ' + b"[" * 10_000), 400, True),
    "many values": (with_body(b'{"input": [' + b"[]," * 700_000 + b"[]]}"), 400, True),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cache_dir: Path) -> AsyncIterator[Service]:
    """A server for the whole table."""
    async with serving(settings_for(cache_dir=cache_dir, http_address="127.0.0.1:0")) as one:
        yield one


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", TABLE)
async def test_rules_of_http(shared: Service, case: str) -> None:
    """Each request gets one answer, with its status; what is left of it is never a request."""
    sent, status, stays = TABLE[case]
    host, _, port = shared.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        version, got = head.split()[:2]
        assert (version, int(got)) == (version_of(sent), status)
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        body = await reader.readexactly(size)
        if status != 200:
            assert json.loads(body)["error"]["message"]
        if stays:
            writer.write(LIVE)
            assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"200"
        else:
            assert await reader.read() == b""
    writer.close()


def version_of(sent: bytes) -> bytes:
    """Return the version of the answer: that of HTTP/1.0, and of what is malformed, is its own."""
    return b"HTTP/1.0" if b" HTTP/1.0\r\n" in sent else b"HTTP/1.1"


@pytest.mark.parametrize("first", [LIVE, post(JSON, LENGTH)])
async def test_a_second_head_that_drips(serve: Serve, first: bytes) -> None:
    """On a connection that is kept alive, the next head has as long as the first."""
    service = await serve(http_address="127.0.0.1:0", max_receive_s=0.5)
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(first)
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        for byte in LIVE * 1000:
            writer.write(bytes([byte]))
            if reader.at_eof() or writer.transport.is_closing():
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the connection was never closed")
    writer.close()
