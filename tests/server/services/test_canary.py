"""A random word in texts, prompts and credentials comes out nowhere but in answers."""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.telemetry.logs import HumanFormatter, JsonFormatter
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.failures import read_failure
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile
from tests.server.kserve.requests import KServe, request_for
from tests.server.service import EMBED, Service, serving, settings_for
from tests.server.streams import Stream
from tests.server.tei.conftest import Tei

_EXPORTS = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "spans",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}


class Outputs:
    """Everything that comes out of a server, but for answers."""

    def __init__(self, canary: str) -> None:
        self.canary = canary
        self.said: list[str] = []
        self.spans: list[bytes] = []
        self.metrics: list[bytes] = []

    async def fails(self, call: Awaitable[Any]) -> None:
        """Make a call that must fail; keep what it is told."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        failure = read_failure(caught.value)
        self.said += [failure.details, failure.trailing, repr(failure.metadata)]

    def check(self, logged: Iterable[str]) -> None:
        """Check that the word is in none of them."""
        found = [one for one in (*self.said, *logged) if self.canary in one]
        assert not found
        assert self.canary.encode() not in b"".join((*self.spans, *self.metrics))


@asynccontextmanager
async def _collector(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    server = grpc.aio.server()
    for service, kind in _EXPORTS.items():
        received: list[bytes] = getattr(outputs, kind)

        async def export(request: bytes, _: Any, received: list[bytes] = received) -> bytes:
            received.append(request)
            return b""

        handler: Any = grpc.unary_unary_rpc_method_handler(export)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    await server.stop(None)


async def _grpc_calls(service: Service, outputs: Outputs, key: str) -> None:
    """Calls of our contract that succeed, and that fail in many ways."""
    text, client, known = f"a text with {outputs.canary}", service.client, (("x-api-key", key),)
    none = common.TRUNCATION_NONE
    for options in (pb.EmbedOptions(), pb.EmbedOptions(prompt_text=text)):
        request = pb.EmbedRequest(texts=[text], options=options)
        await client.embedding.Embed(request, metadata=known)
    await client.tokenizer.CountTokens(tokenizer.CountTokensRequest(texts=[text]), metadata=known)
    ranking = rerank.RerankRequest(query=text, documents=[text])
    await client.rerank.Rerank(ranking, metadata=known)
    for bad in (
        pb.EmbedRequest(texts=[text, ""]),
        pb.EmbedRequest(texts=[text * 90], options=pb.EmbedOptions(truncation=none)),
        pb.EmbedRequest(texts=[text] * 9),
        pb.EmbedRequest(texts=[text], options=pb.EmbedOptions(prompt_text=text * 1000)),
        pb.EmbedRequest(texts=[text], model=text * 10),
    ):
        await outputs.fails(client.embedding.Embed(bad, metadata=known))
    method = "/embedgrpc.v1.EmbeddingService/Embed"
    for data in (b"\x0a\x7f" + text.encode(), b"\x0a\x20\xff" + text.encode() * 2):
        await outputs.fails(client.send_bytes(method, data, metadata=known))
    for wrong in (
        (("x-api-key", outputs.canary),),
        (("authorization", f"Bearer {outputs.canary}"),),
        (("authorization", f"Bearer e30.{outputs.canary}.x"),),
        (("authorization", f"Basic {outputs.canary}"),),
        (("x-api-key", outputs.canary * 2000),),
        (),
    ):
        request = pb.EmbedRequest(texts=[text])
        await outputs.fails(client.embedding.Embed(request, metadata=wrong))
    stream = await Stream.open(client, metadata=known, options=pb.EmbedOptions(truncation=none))
    await stream.send(("a", text), ("b", text * 90), ("c", ""))
    outputs.said += [result.error.message for result in await stream.results(3)]
    await stream.end()


async def _tei_calls(service: Service, outputs: Outputs, key: str) -> None:
    text, known = f"a text with {outputs.canary}", (("x-api-key", key),)
    embed = Tei(service).embed.Embed
    await embed(tei_pb2.EmbedRequest(inputs=text), metadata=known)
    await outputs.fails(
        embed(tei_pb2.EmbedRequest(inputs=text * 90, truncate=False), metadata=known)
    )
    await outputs.fails(embed(tei_pb2.EmbedRequest(inputs=text)))


async def _kserve_calls(service: Service, outputs: Outputs, key: str) -> None:
    text, known = f"a text with {outputs.canary}", (("x-api-key", key),)
    infer = KServe(service).stub.ModelInfer
    for raw in (True, False):
        await infer(request_for(text, raw=raw, model_name="embed"), metadata=known)
    short = request_for(text, model_name="embed")
    short.raw_input_contents[0] = short.raw_input_contents[0][:-3]
    for bad in (
        short,
        request_for(text.encode() + b"\xff", model_name="embed"),
        request_for(*[text] * 9, model_name="embed"),
        request_for(text, model_name=text * 10),
    ):
        await outputs.fails(infer(bad, metadata=known))
    await outputs.fails(infer(request_for(text, model_name="embed")))


async def _http_calls(service: Service, outputs: Outputs, key: str) -> None:
    text, http = f"a text with {outputs.canary}", HttpClient(service)
    for path, body in (
        ("/v1/embeddings", {"input": text}),
        ("/v1/rerank", {"query": text, "documents": [text]}),
        ("/embed", {"inputs": text}),
        ("/embed", {"inputs": text * 90, "truncate": False}),
        ("/v1/embeddings", {"input": [text, ""]}),
        ("/v1/embeddings", {"input": text, "dimensions": text}),
        ("/v1/embeddings", {text: text}),
        ("/v1/embeddings", f'{{"input": "{text}'.encode()),
        ("/tokenize", {"inputs": [text, text * 1000]}),
    ):
        for given in ({"authorization": f"Bearer {key}"}, {"x_api_key": outputs.canary}, {}):
            reply = await http.post(path, body, **given)
            outputs.said.append(repr(dict(reply.headers)))
            if reply.status >= 400:
                outputs.said.append(reply.body.decode())


async def _failing_runs(service: Service, outputs: Outputs, key: str, backend: HashBackend) -> None:
    """A backend whose errors quote the text."""
    text, known = f"a text with {outputs.canary}", (("x-api-key", key),)

    def quoting(error: type[Exception]) -> Any:
        def answer(_: IntArray) -> FloatArray:
            raise error("the run failed") from LookupError(text)

        return answer

    for error in (BackendError, ValueError):
        backend.answer = quoting(error)
        request = pb.EmbedRequest(texts=[text])
        await outputs.fails(service.client.embedding.Embed(request, metadata=known))
    backend.hold()
    request = pb.EmbedRequest(texts=[text])
    await outputs.fails(service.client.embedding.Embed(request, metadata=known, timeout=0.05))
    backend.release()


async def test_a_canary_comes_out_nowhere(  # noqa: PLR0917 - fixtures
    backend: HashBackend,
    cache_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in logs, access log, metrics, spans or errors, through any door, however a call ends."""
    caplog.set_level(logging.DEBUG)
    outputs = Outputs(f"canary{secrets.token_hex(8)}")
    keys = KeyFile(tmp_path)
    key = keys.add("indexer", 'scopes = ["metrics"]')
    settings = settings_for(
        EMBED,
        cache_dir=cache_dir,
        http_address="127.0.0.1:0",
        tei_model="embed",
        kserve=True,
        access_log="all",
        max_inputs=8,
        health_interval_s=3600,
        **keys.settings,
    )
    async with _collector(outputs, monkeypatch), serving(settings, backend.open) as service:
        await _grpc_calls(service, outputs, key)
        await _tei_calls(service, outputs, key)
        await _kserve_calls(service, outputs, key)
        await _http_calls(service, outputs, key)
        await _failing_runs(service, outputs, key, backend)
        http = HttpClient(service)
        scraped = await http.get("/metrics", authorization=f"Bearer {key}")
        assert scraped.status == 200
        outputs.said.append(scraped.body.decode())
    logged = [
        formatter.format(record)
        for record in caplog.records
        for formatter in (JsonFormatter(), HumanFormatter(), logging.Formatter())
    ]
    logged += [repr(record.__dict__) for record in caplog.records]
    logged += capfd.readouterr()
    outputs.check(logged)
    # A key comes out nowhere, either.
    secret = Outputs(key)
    secret.said, secret.spans, secret.metrics = outputs.said, outputs.spans, outputs.metrics
    secret.check(logged)
    # All of that was there to be searched.
    lines = [json.loads(one) for one in logged if one.startswith('{"time"')]
    doors = {line["door"] for line in lines if line["event"] == "call"}
    assert doors == {"grpc", "tei", "kserve", "http"}
    assert b"embedgrpc.v1.EmbeddingService" in b"".join(outputs.spans)
    assert b"embedgrpc.sequences" in b"".join(outputs.metrics)
    assert any("embedgrpc_sequences_total" in one for one in outputs.said)
    assert len(outputs.said) > 60
