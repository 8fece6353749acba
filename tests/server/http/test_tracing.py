"""Calls over HTTP have spans as those over gRPC have."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.authority import HOSTS, Authority
from tests.server.hash_backend import HashBackend
from tests.server.http.conftest import MODELS
from tests.server.http.http_client import HttpClient
from tests.server.service import EMBED, Service, serving, settings_for, until
from tests.server.span_receiver import all_spans, attributes_of, receiving_spans
from tests.server.tls_caller import TlsCaller

in_module = pytest.mark.asyncio(loop_scope="module")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
CANARY = "canary-4711"
BODY = {"input": CANARY}
ERRORS: dict[object, str] = {500: "500", None: "CancelledError"}
SERVER = trace_pb2.Span.SPAN_KIND_SERVER


def _server_spans(exports: Sequence[bytes]) -> list[trace_pb2.Span]:
    return [one for one in all_spans(exports) if one.kind == SERVER]


async def test_a_call_has_a_span(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It continues its caller's trace, describes the call, and the batch is linked to it."""
    settings = settings_for(
        EMBED, cache_dir=cache_dir, http_address="127.0.0.1:0", health_interval_s=3600
    )
    async with receiving_spans(monkeypatch) as exports:
        async with serving(settings) as service:
            reply = await HttpClient(service).post(
                "/v1/embeddings?key=value",
                BODY | {"model": "embed"},
                traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01",
                x_request_id="id-1",
            )
            assert reply.status == 200
            port = int(service.server.http_address.rpartition(":")[2])
            tokens = reply.json["usage"]["prompt_tokens"]
        (span,) = _server_spans(exports)
        (batch,) = [one for one in all_spans(exports) if one.kind != SERVER]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.name == "POST /v1/embeddings"
    found = attributes_of(span)
    assert found.pop("network.peer.port")
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "http.request.header.x-request-id": "id-1",
        "url.scheme": "http",
        "url.path": "/v1/embeddings",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "server.port": port,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embedgrpc",
        "gen_ai.request.model": "embed",
        "gen_ai.response.model": "embed",
        "gen_ai.embeddings.dimension.count": 36,
        "gen_ai.request.encoding_formats": "float32",
        "gen_ai.usage.input_tokens": tokens,
    }
    assert not span.HasField("status") or span.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert batch.name == "batch embed"
    assert [(one.trace_id, one.span_id) for one in batch.links] == [(span.trace_id, span.span_id)]


async def test_a_call_over_tls(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scheme is https."""
    authority = Authority(tmp_path)
    tls = authority.issue("server", *HOSTS).settings
    settings = settings_for(EMBED, cache_dir=cache_dir, http_address="127.0.0.1:0", **tls)
    async with receiving_spans(monkeypatch) as exports:
        async with serving(settings) as service:
            await TlsCaller(service.server, authority.pem).over_http()
        (span,) = _server_spans(exports)
    assert attributes_of(span)["url.scheme"] == "https"


async def test_spans_of_other_calls(
    backend: HashBackend, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the server's faults are errors, probes have no span, and no text is anywhere."""
    settings = settings_for(
        *MODELS, cache_dir=cache_dir, http_address="127.0.0.1:0", health_interval_s=3600
    )
    async with receiving_spans(monkeypatch) as exports:
        async with serving(settings, backend.open) as service:
            http = HttpClient(service)
            assert (await http.get("/health")).status == 200
            assert (await http.get(f"/{CANARY}")).status == 404
            assert (await http.get("/v1/embeddings")).status == 405
            assert (await http.get("/v1/models/org/second")).status == 200
            assert (await http.get(f"/v1/models/{CANARY}")).status == 404
            assert (await http.send("PROPFIND", "/")).status == 405
            canaries = {"host": f"{CANARY} {CANARY}", "user-agent": CANARY}
            unknown = await http.send("POST", "/embed", json={CANARY: 1}, headers=canaries)
            assert unknown.status == 422
            backend.answer = lambda _: np.full(36, np.nan, np.float32)
            assert (await http.post("/v1/embeddings", BODY)).status == 500
            await _leave(service, backend)
        spans = {one.name: one for one in _server_spans(exports)}
        assert CANARY.encode() not in b"".join(exports)
    found = {name: attributes_of(one) for name, one in spans.items()}
    statuses: dict[str, set[object]] = {
        "GET": {404, 405},
        "GET /v1/models/{id}": {200, 404},
        "HTTP": {405},
        "POST /embed": {422},
        "POST /v1/embeddings": {500},
        "POST /v1/rerank": {None},
    }
    assert set(found) == set(statuses)
    for one in _server_spans(exports):
        attributes = attributes_of(one)
        status = attributes.get("http.response.status_code")
        assert status in statuses[one.name]
        assert ("url.path" in attributes) == (one.name[-1:] not in "}TP")
        failed = one.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        assert failed == (status == 500)
        assert attributes.get("error.type") == ERRORS.get(status)
    assert found["HTTP"]["http.request.method"] == "_OTHER"
    assert "server.address" not in found["POST /embed"]


async def _leave(service: Service, backend: HashBackend) -> None:
    """Send a request, and close the connection while it runs."""
    backend.hold()
    host, _, port = service.server.http_address.rpartition(":")
    body = b'{"query": "a", "documents": ["b"]}'
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    await until(lambda: len(service.server.open_calls))
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await until(lambda: not len(service.server.open_calls))
    backend.release()


@in_module
async def test_calls_count_in_the_metrics(service: Service, http: HttpClient) -> None:
    """The metrics of sequences, batches and connections hold those of this port."""

    def count(metric: str, **attributes: str) -> float:
        return sum(
            one.value
            for one in service.server.figures.read()
            if one.metric == metric and attributes.items() <= one.attributes.items()
        )

    before = count("embedgrpc.sequences", model="embed", fate="answered")
    batches = count("embedgrpc.batches", model="embed")
    reply = await http.post("/v1/embeddings", {"input": [f"text {n}" for n in range(20)]})
    assert reply.status == 200
    # The health of the model is checked meanwhile, perhaps, which is a sequence too.
    assert count("embedgrpc.sequences", model="embed", fate="answered") >= before + 20
    # A batch is counted after its results are on their way.
    await until(lambda: count("embedgrpc.batches", model="embed") > batches)
    listeners = {
        one.attributes["listener"]
        for one in service.server.figures.read()
        if one.metric == "embedgrpc.connections.open"
    }
    assert "http" in listeners
