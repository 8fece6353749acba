"""What no client should send: each gets an answer in the usual form, and holds nothing for long."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from embedgrpc.server.http.connection import Connection
from embedgrpc.server.process.server import Server
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.service import EMBED, PATIENCE_S, Service, serving, settings_for, until

in_module = pytest.mark.asyncio(loop_scope="module")

CANARY = b"CANARY"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b'{"input": "a"}'
UNREAD: dict[str, Any] = {"http_address": "127.0.0.1:0", "max_unary_s": 5}


def unix(folder: Path) -> dict[str, Any]:
    """Return settings for a Unix socket."""
    return {"http_address": f"unix:{folder / 'http.sock'}", "max_connections": 8}


def post(body: bytes, *headers: bytes) -> bytes:
    """Return a request for embeddings."""
    lines = [b"host: x", b"content-type: application/json", *headers]
    if not headers:
        lines.append(b"content-length: %d" % len(body))
    return b"POST /v1/embeddings HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


async def exchange(service: Service, sent: bytes) -> tuple[int, Any]:
    """Send bytes on a connection that the server must close; return the status and the body."""
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    body = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return int(head.split()[1]), json.loads(body)


@in_module
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (CANARY + b"\x00\x01 x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: CANARY\x01\r\n\r\n", 400),
        (b"GET /CANARY\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (CANARY * 2000), 431),
        (b"GET /info HTTP/1.1\r\nhost: x\r\nx: %s\r\n\r\n" % (CANARY * 2000), 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nCANARY", 400),
        (post(BODY, b"content-length: 14", b"transfer-encoding: chunked", b"x: CANARY"), 400),
        (post(BODY, b"content-length: 14", b"content-length: 15", b"x: CANARY"), 400),
        (post(b"CANARY\r\n", b"transfer-encoding: chunked"), 400),
    ],
)
async def test_what_is_no_http(
    service: Service, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    """The answer has the form of all errors; neither it nor the log quotes the request."""
    caplog.set_level(logging.DEBUG)
    got, body = await exchange(service, sent)
    assert (got, body["error"]["code"]) == (status, "invalid_request")
    assert CANARY.decode() not in json.dumps(body)
    assert CANARY.decode() not in caplog.text
    assert "Traceback" not in caplog.text


@in_module
async def test_a_head_is_refused_before_it_is_complete(service: Service) -> None:
    """Unfinished headers hold no more than a few times what a request may have."""
    sent = b"GET /info HTTP/1.1\r\nhost: x\r\n" + (b"x: " + b"a" * 8000 + b"\r\n") * 5
    status, body = await exchange(service, sent)
    assert (status, body["error"]["code"]) == (431, "invalid_request")


@in_module
@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**40, 2**70])
async def test_numbers_beyond_the_contract(http: HttpClient, number: int) -> None:
    """They are the client's mistake."""
    for key in ("dimensions", "truncate_prompt_tokens"):
        reply = await http.post("/v1/embeddings", {"input": "a", key: number})
        assert (reply.status, reply.json["error"]["param"]) == (400, key)


@pytest.mark.parametrize("grace_s", [0, 2])
async def test_a_stop_waits_for_its_grace_once(
    cache_dir: Path, backend: HashBackend, grace_s: float
) -> None:
    """A call that does not end holds up the stop for the grace, and no longer."""
    settings = settings_for(
        EMBED, cache_dir=cache_dir, http_address="127.0.0.1:0", shutdown_grace_s=grace_s
    )
    async with Server(settings, open_backend=backend.open) as server:
        await server.load()
        backend.hold()
        host, _, port = server.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(post(BODY))
        await until(lambda: len(server.open_calls))
        assert server._http is not None
        began = time.monotonic()
        await asyncio.wait_for(server._http.stop(), PATIENCE_S)
        took_s = time.monotonic() - began
        assert grace_s <= took_s + 0.01
        assert took_s < grace_s + 1.5
        writer.close()
        backend.release()


async def test_connections_over_a_unix_socket_are_bounded(serve: Serve, tmp_path: Path) -> None:
    """Nothing lists its connections; those that are idle go all the same."""
    service = await serve(**unix(tmp_path))
    await _fill_a_unix_socket(service)


async def test_an_answer_that_is_not_read_is_dropped(serve: Serve, backend: HashBackend) -> None:
    """Once its call has been ended, nothing of it stays in memory."""
    await _leave_answers_unread(await serve(backend=backend, **UNREAD))


async def _fill_a_unix_socket(service: Service) -> None:
    opened = []
    for _ in range(40):
        path = service.server.http_address.removeprefix("unix:")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(LIVE)
        opened.append((reader, writer))
        await asyncio.sleep(0)
    http = service.server._http
    assert http is not None
    await until(lambda: len(http._server.connections) <= 8)
    for _, writer in opened:
        writer.close()


async def _leave_answers_unread(service: Service) -> None:
    host, _, port = service.server.http_address.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    texts = json.dumps({"input": [str(number) for number in range(1024)]}).encode()
    sending = asyncio.ensure_future(loop.sock_sendall(client, post(texts) * 200))
    http = service.server._http
    assert http is not None
    await until(lambda: http._server.connections)
    await until(lambda: not http._server.connections)
    assert not service.server.open_calls.limits.held_bytes
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Connection) and one.transport]
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    client.close()


async def _send_half_a_head(service: Service) -> None:
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/emb")
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def _send_a_large_head(service: Service) -> None:
    sent = b"GET /info HTTP/1.1\r\nhost: x\r\n" + (b"x: " + b"a" * 8000 + b"\r\n") * 5
    status, body = await exchange(service, sent)
    assert (status, body["error"]["code"]) == (431, "invalid_request")


@pytest.mark.parametrize(
    ("check", "settings"),
    [
        (_send_half_a_head, lambda _: {"http_address": "127.0.0.1:0", "max_receive_s": 0.5}),
        (_send_a_large_head, lambda _: {"http_address": "127.0.0.1:0"}),
        (_fill_a_unix_socket, unix),
        pytest.param(_leave_answers_unread, lambda _: UNREAD, marks=pytest.mark.long),
    ],
    ids=["half a head", "a large head", "a unix socket", "unread answers"],
)
def test_limits_on_the_loop_of_a_server(
    cache_dir: Path,
    tmp_path: Path,
    check: Callable[[Service], Awaitable[None]],
    settings: Callable[[Path], dict[str, Any]],
) -> None:
    """They hold on uvloop, too, whose transports are other classes than those of asyncio."""
    backend = HashBackend()

    async def run() -> None:
        given = settings_for(cache_dir=cache_dir, **settings(tmp_path))
        async with serving(given, open_backend=backend.open) as service:
            await check(service)

    uvloop.run(run())
