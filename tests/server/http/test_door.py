"""What holds for every dialect: rules of HTTP, budgets, deadlines, ids, the end of a server."""

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import pytest

from embedgrpc.server.loading.catalog import ModelState
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.service import (
    CROSS,
    EMBED,
    PATIENCE_S,
    Service,
    serving,
    settings_for,
    until,
)

in_module = pytest.mark.asyncio(loop_scope="module")

BODY = {"input": "a text"}


@in_module
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/embeddings", None, 405),
        ("DELETE", "/v1/models", None, 405),
        ("POST", "/v1/embeddings", b"", 400),
        ("POST", "/v1/embeddings", b"{", 400),
        ("POST", "/v1/embeddings", b"[" * 100_000, 400),
        ("POST", "/v1/embeddings", b'{"input": "\xff"}', 400),
        ("POST", "/v1/embeddings", rb'{"input": "\ud800"}', 400),
        ("POST", "/v1/embeddings", b'{"input": "a", "dimensions": NaN}', 400),
        ("POST", "/v1/embeddings", b" " * 4_200_000, 413),
    ],
)
async def test_bad_requests(
    service: Service, http: HttpClient, *, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Each gets its status and OpenAI's form of error, and nothing stays behind."""
    headers = {"content-type": "application/json"}
    reply = await http.send(method, path, data=body, headers=headers)
    assert reply.status == status
    assert reply.json["error"]["message"]
    await service.check_alive()
    await until(lambda: not service.server.open_calls.limits.held_bytes)


@in_module
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_bodies_than_plain_json(http: HttpClient, headers: dict[str, str]) -> None:
    """A body of another type, or a compressed one, is refused before it is read."""
    reply = await http.send("POST", "/v1/embeddings", data=json.dumps(BODY), headers=headers)
    assert reply.status == 415


@in_module
async def test_a_body_in_chunks_without_a_length_is_bounded(http: HttpClient) -> None:
    """The limit holds without a content-length, too."""

    async def chunks():  # type: ignore[no-untyped-def]  # noqa: ANN202
        for _ in range(100):
            yield b" " * 100_000

    with contextlib.suppress(aiohttp.ClientConnectionError):
        reply = await http.send(
            "POST",
            "/v1/embeddings",
            data=chunks(),  # type: ignore[no-untyped-call]
            headers={"content-type": "application/json"},
        )
        assert reply.status == 413


@in_module
async def test_a_body_that_comes_in_parts(http: HttpClient) -> None:
    """Parts of a body are no head, however large: neither those between nor the last one."""
    for characters in (200_000, 2_000_000):
        reply = await http.post("/v1/embeddings", {"input": "a" * characters})
        assert reply.status == 200


@in_module
async def test_a_client_that_waits_for_100_continue(http: HttpClient) -> None:
    """Curl waits for it before it sends a large body."""
    reply = await http.post("/v1/embeddings", BODY, expect="100-continue")
    assert reply.status == 200


@in_module
async def test_many_small_headers_are_too_large_together(http: HttpClient) -> None:
    """All headers may have 16 KiB, as gRPC's metadata may."""
    headers = {f"x-{number}": "x" * 1000 for number in range(20)}
    reply = await http.get("/v1/models", **headers)
    assert reply.status == 431
    assert "the limit is 16384" in reply.json["error"]["message"]


@in_module
async def test_request_ids_are_echoed(http: HttpClient) -> None:
    """The id comes back with results and with errors."""
    reply = await http.post("/v1/embeddings", BODY, x_request_id="abc-1")
    assert reply.headers["x-request-id"] == "abc-1"
    reply = await http.post("/v1/embeddings", {}, x_request_id="abc-2")
    assert (reply.status, reply.headers["x-request-id"]) == (400, "abc-2")


@in_module
@pytest.mark.parametrize("value", ["1e3", "-1", "5 m", "x" * 5000])
async def test_a_malformed_deadline(http: HttpClient, value: str) -> None:
    """A deadline that cannot be read is refused."""
    reply = await http.post("/v1/embeddings", BODY, x_request_timeout=value)
    assert (reply.status, reply.json["error"]["param"]) == (400, "x-request-timeout")


async def test_a_deadline_that_passes(serve: Serve, backend: HashBackend) -> None:
    """The call ends at the deadline of its header."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    backend.hold()
    reply = await HttpClient(service).post("/v1/embeddings", BODY, x_request_timeout="50ms")
    assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_expired")


async def test_a_client_that_leaves_frees_what_its_call_held(
    serve: Serve, backend: HashBackend
) -> None:
    """Its work is cancelled at once."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    backend.hold()
    call = asyncio.ensure_future(HttpClient(service).post("/v1/embeddings", BODY))
    await until(lambda: len(service.server.open_calls))
    call.cancel()
    await until(lambda: not len(service.server.open_calls))
    await until(lambda: not service.server.open_calls.limits.held_bytes)


async def test_a_body_that_drips_is_ended(serve: Serve) -> None:
    """A body has as much time as a message of gRPC."""
    service = await serve(http_address="127.0.0.1:0", max_receive_s=0.5)
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{"
    )
    reply = await asyncio.wait_for(reader.read(), PATIENCE_S)
    assert reply.startswith(b"HTTP/1.1 504 ")
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/emb"])
async def test_a_connection_that_sends_no_request_is_closed(serve: Serve, sent: bytes) -> None:
    """Neither silence nor half a request keeps a connection open."""
    service = await serve(http_address="127.0.0.1:0", max_receive_s=0.5)
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def test_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    """The port may be a path; its connections are kept alive."""
    path = tmp_path / "http"
    service = await serve(http_address=f"unix:{path}")
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(2):
            async with session.post("http://x/v1/embeddings", json=BODY) as response:
                assert response.status == 200
    assert service.server.http_address == f"unix:{path}"


async def test_probes_follow_the_health_of_the_server(own_service: Service) -> None:
    """Readiness ends with a stop, liveness does not."""
    http = HttpClient(own_service)
    for path in ("/health", "/health/ready", "/health/live"):
        assert (await http.get(path)).status == 200
        assert (await http.send("HEAD", path)).status == 200
    await own_service.server._health.stop()
    assert (await http.get("/health")).status == 503
    assert (await http.get("/health/ready")).json["error_type"] == "Unhealthy"
    assert (await http.get("/health/live")).status == 200


@pytest.mark.parametrize(
    ("readiness", "statuses"),
    [("default", (200, 503)), ("all", (503, 503)), ("any", (200, 200))],
)
async def test_probes_follow_the_models(
    cache_dir: Path, readiness: str, statuses: tuple[int, int]
) -> None:
    """A server is not ready while it loads; then as its models are, and the setting says."""
    settings = settings_for(
        EMBED, CROSS, cache_dir=cache_dir, http_address="127.0.0.1:0", readiness=readiness
    )
    async with serving(settings, load=False) as service:
        http = HttpClient(service)
        assert (await http.get("/health/ready")).status == 503
        assert (await http.get("/health/live")).status == 200
        assert (await http.get("/")).json["status"] == "unavailable"
        await service.server.load()
        assert (await http.get("/health/ready")).status == 200
        embed, cross = service.server.catalog
        for first, second, status in (
            (ModelState.READY, ModelState.FAILED, statuses[0]),
            (ModelState.FAILED, ModelState.READY, statuses[1]),
        ):
            embed.state, cross.state = first, second
            assert (await http.get("/health/ready")).status == status
        embed.state = cross.state = ModelState.FAILED
        assert (await http.get("/health")).status == 503


async def test_a_server_that_stops_answers_its_calls(serve: Serve, backend: HashBackend) -> None:
    """A call in flight is answered, and its connection closed."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    backend.hold()
    call = asyncio.ensure_future(HttpClient(service).post("/v1/embeddings", BODY))
    await until(lambda: len(service.server.open_calls))
    await service.server.drain()
    http = service.server._http
    assert http is not None
    stop = asyncio.ensure_future(service.server._resources.aclose())
    await until(lambda: not http._runner.sites)
    backend.release()
    reply = await call
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    await stop
