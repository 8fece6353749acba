"""The record of a call: what logs and metrics learn of it when it ends, through every door."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.rankings import part, setup
from tests.server.service import CROSS, EMBED, FIXTURES, PATIENCE_S, Service, until
from tests.server.streams import Stream
from tests.server.tei.conftest import Tei

NLI = ModelSettings(id="nli", source=str(FIXTURES / "classify-nli"))
EMBED_METHOD = "/embedgrpc.v1.EmbeddingService/Embed"


@dataclass(frozen=True)
class Ended:
    """What a record says, without its times."""

    door: str
    method: str
    status: str
    reason: str = ""
    label: str = ""
    models: tuple[str, ...] = ()
    inputs: int = 0
    failed_inputs: int = 0
    has_tokens: bool = False
    is_probe: bool = False


def _records(service: Service) -> list[Ended]:
    """Collect the records of the calls that end from now on."""
    ended: list[Ended] = []

    def observe(call: Any) -> None:
        record = call.record
        assert record.total_s > 0
        assert bool(record.queue_s) <= bool(record.tokens)
        ended.append(
            Ended(
                record.door,
                record.method,
                record.status,
                record.reason,
                record.label,
                tuple(one.id for one in record.models),
                record.inputs,
                record.failed_inputs,
                record.tokens > 0,
                record.is_probe,
            )
        )

    service.server.open_calls.observers.append(observe)
    return ended


Act = Callable[[Service], Awaitable[Any]]


def _grpc(method: str, status: str = "OK", **more: Any) -> Ended:
    return Ended("grpc", f"/embedgrpc.v1.{method}", status, **more)


async def _embed_stream(service: Service) -> None:
    stream = await Stream.open(service.client)
    await stream.send(("a", "a text"), ("b", ""), ("c", "a third"))
    assert len(await stream.results(3)) == 3
    await stream.end()


async def _rerank_stream(service: Service) -> None:
    messages = [setup(model="cross"), part("q", "a query", ["one", "two"])]
    assert [one async for one in service.client.rerank.StreamRerank(iter(messages))]


async def _tei_stream(service: Service) -> None:
    messages = iter([tei_pb2.EmbedRequest(inputs=text) for text in ("one", "two")])
    assert len([one async for one in Tei(service).embed.EmbedStream(messages)]) == 2


async def _curl(service: Service, *, body: Any, path: str = "/v1/embeddings") -> None:
    await HttpClient(service).post(path, body)


ENDS: dict[str, tuple[Act, Ended]] = {
    "embed": (
        lambda service: service.client.embed("one", "two"),
        _grpc("EmbeddingService/Embed", models=("embed",), inputs=2, has_tokens=True),
    ),
    "partial": (
        lambda service: service.client.embed("one", "", allow_partial=True),
        _grpc(
            "EmbeddingService/Embed",
            models=("embed",),
            inputs=2,
            failed_inputs=1,
            has_tokens=True,
        ),
    ),
    "a bad text": (
        lambda service: service.client.embed("one", ""),
        _grpc(
            "EmbeddingService/Embed",
            "INVALID_ARGUMENT",
            reason="EMPTY_INPUT",
            models=("embed",),
            inputs=2,
        ),
    ),
    "too many texts": (
        lambda service: service.client.embed(*["one"] * 9),
        _grpc(
            "EmbeddingService/Embed",
            "INVALID_ARGUMENT",
            reason="INVALID_REQUEST",
            label="TOO_MANY_INPUTS",
            models=("embed",),
            inputs=9,
        ),
    ),
    "no such model": (
        lambda service: service.client.embed("one", model="nobody"),
        _grpc("EmbeddingService/Embed", "NOT_FOUND", reason="MODEL_NOT_FOUND"),
    ),
    "malformed": (
        lambda service: service.client.send_bytes(EMBED_METHOD, b"\x0a\x7fno"),
        _grpc(
            "EmbeddingService/Embed",
            "INVALID_ARGUMENT",
            reason="INVALID_REQUEST",
            label="MALFORMED_MESSAGE",
        ),
    ),
    "rerank": (
        lambda service: service.client.rerank.Rerank(
            rerank.RerankRequest(model="cross", query="q", documents=["one", "two", "three"])
        ),
        _grpc("RerankService/Rerank", models=("cross",), inputs=3, has_tokens=True),
    ),
    "classify": (
        lambda service: service.client.classify.Classify(
            classify.ClassifyRequest(model="nli", texts=["one", "two"])
        ),
        _grpc("ClassifyService/Classify", models=("nli",), inputs=2, has_tokens=True),
    ),
    "count tokens": (
        lambda service: service.client.tokenizer.CountTokens(
            tokenizer.CountTokensRequest(texts=["one"])
        ),
        _grpc("TokenizerService/CountTokens", models=("embed",), inputs=1, has_tokens=True),
    ),
    "stream": (
        _embed_stream,
        _grpc(
            "EmbeddingService/StreamEmbed",
            models=("embed",),
            inputs=3,
            failed_inputs=1,
            has_tokens=True,
        ),
    ),
    "rerank stream": (
        _rerank_stream,
        _grpc("RerankService/StreamRerank", models=("cross",), inputs=2, has_tokens=True),
    ),
    "health": (
        lambda service: service.client.health.Check(health_pb2.HealthCheckRequest()),
        Ended("grpc", "/grpc.health.v1.Health/Check", "OK", is_probe=True),
    ),
    "no such service": (
        lambda service: service.client.health.Check(health_pb2.HealthCheckRequest(service="x")),
        Ended("grpc", "/grpc.health.v1.Health/Check", "NOT_FOUND", is_probe=True),
    ),
    "tei": (
        lambda service: Tei(service).embed.Embed(tei_pb2.EmbedRequest(inputs="one")),
        Ended("tei", "/tei.v1.Embed/Embed", "OK", models=("embed",), inputs=1, has_tokens=True),
    ),
    "tei, empty": (
        lambda service: Tei(service).embed.Embed(tei_pb2.EmbedRequest(inputs="")),
        Ended(
            "tei",
            "/tei.v1.Embed/Embed",
            "INVALID_ARGUMENT",
            "EMPTY_INPUT",
            models=("embed",),
            inputs=1,
        ),
    ),
    "tei stream": (
        _tei_stream,
        Ended(
            "tei", "/tei.v1.Embed/EmbedStream", "OK", models=("embed",), inputs=2, has_tokens=True
        ),
    ),
    "http": (
        lambda service: _curl(service, body={"model": "embed", "input": ["one", "two"]}),
        Ended("http", "POST /v1/embeddings", "200", models=("embed",), inputs=2, has_tokens=True),
    ),
    "http, empty": (
        lambda service: _curl(service, body={"model": "embed", "input": ["one", ""]}),
        Ended("http", "POST /v1/embeddings", "400", "EMPTY_INPUT", models=("embed",), inputs=2),
    ),
    "http, no such path": (
        lambda service: _curl(service, body={}, path="/v1/secret"),
        Ended("http", "", "404", "INVALID_REQUEST"),
    ),
    "http, ranking": (
        lambda service: _curl(
            service,
            path="/v1/rerank",
            body={"model": "cross", "query": "q", "documents": ["one", "two"]},
        ),
        Ended("http", "POST /v1/rerank", "200", models=("cross",), inputs=2, has_tokens=True),
    ),
    "http, probe": (
        lambda service: HttpClient(service).get("/health/live"),
        Ended("http", "GET /health/live", "200", is_probe=True),
    ),
}


async def test_the_record_of_every_door(serve: Serve) -> None:
    """Every way to call leaves one record, with names and counts."""
    service = await serve(
        EMBED, CROSS, NLI, tei_model="embed", http_address="127.0.0.1:0", max_inputs=8
    )
    ended = _records(service)
    for name, (act, expected) in ENDS.items():
        ended.clear()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await act(service)
        await until(lambda: ended)
        assert ended == [expected], name


async def test_calls_that_their_clients_leave(serve: Serve, backend: HashBackend) -> None:
    """A client that cancels, one whose deadline passes, and one that closes its connection."""
    service = await serve(EMBED, backend=backend, http_address="127.0.0.1:0")
    ended = _records(service)
    backend.hold()
    call = asyncio.ensure_future(service.client.embed("one"))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    call.cancel()
    await until(lambda: len(ended) == 1)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.client.embed("two", timeout=0.05)
    await until(lambda: len(ended) == 2)
    body = json.dumps({"model": "embed", "input": "three"}).encode()
    url = f"http://{service.server.http_address}/v1/embeddings"
    async with aiohttp.ClientSession() as session:
        headers = {"content-type": "application/json"}
        asking = asyncio.ensure_future(session.post(url, data=body, headers=headers))
        await until(lambda: service.admission().ledger.inputs(WorkClass.INTERACTIVE) == 1)
        asking.cancel()
        await until(lambda: len(ended) == 3)
    backend.release()
    first, second, third = (one.status for one in ended)
    assert (first, third) == ("CANCELLED", "499")
    # When its deadline passes, a client cancels the call, which may arrive first.
    assert second in {"DEADLINE_EXCEEDED", "CANCELLED"}
    assert [one.inputs for one in ended] == [1, 1, 1]
