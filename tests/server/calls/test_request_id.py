"""A caller's request id comes back with the response, and is in errors, log lines and spans."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.server.telemetry.tracing import Attribute, TracingInterceptor
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.conftest import Serve
from tests.server.failures import read_failure
from tests.server.hash_backend import HashBackend
from tests.server.rankings import part, setup
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for
from tests.server.streams import batch

ID = "0192f1d2-7c4e:a/b+c=d@E_f.9"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server for all calls."""
    async with serving(settings_for(EMBED, CROSS, cache_dir=cache_dir)) as started:
        yield started


def _stream_setup(model: str = "") -> embedding.StreamEmbedRequest:
    return embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup(model=model))


# The path, the messages, and whether the call succeeds.
CALLS: dict[str, tuple[str, Sequence[Any], bool]] = {
    "Embed": ("embedgrpc.v1.EmbeddingService/Embed", [embedding.EmbedRequest(texts=["a"])], True),
    "Embed fails": ("embedgrpc.v1.EmbeddingService/Embed", [embedding.EmbedRequest()], False),
    "no message": ("embedgrpc.v1.EmbeddingService/Embed", [], False),
    "StreamEmbed": (
        "embedgrpc.v1.EmbeddingService/StreamEmbed",
        [_stream_setup(), batch([("1", "a"), ("2", "")])],
        True,
    ),
    "StreamEmbed fails": (
        "embedgrpc.v1.EmbeddingService/StreamEmbed",
        [_stream_setup("none")],
        False,
    ),
    "Rerank": (
        "embedgrpc.v1.RerankService/Rerank",
        [rerank.RerankRequest(model="cross", query="q", documents=["a"])],
        True,
    ),
    "Rerank fails": ("embedgrpc.v1.RerankService/Rerank", [rerank.RerankRequest()], False),
    "StreamRerank": (
        "embedgrpc.v1.RerankService/StreamRerank",
        [setup("cross"), part("1", "q", ["a"])],
        True,
    ),
    "StreamRerank fails": (
        "embedgrpc.v1.RerankService/StreamRerank",
        [setup("cross"), part("1", "q", ["a"], more=True)],
        False,
    ),
    "Classify": (
        "embedgrpc.v1.ClassifyService/Classify",
        [classify.ClassifyRequest(model="cross", texts=["a"])],
        True,
    ),
    "Classify fails": (
        "embedgrpc.v1.ClassifyService/Classify",
        [classify.ClassifyRequest()],
        False,
    ),
    "StreamClassify": (
        "embedgrpc.v1.ClassifyService/StreamClassify",
        [
            classify.StreamClassifyRequest(setup=classify.StreamClassifySetup(model="cross")),
            classify.StreamClassifyRequest(
                batch=classify.StreamClassifyBatch(inputs=[classify.StreamClassifyInput(text="a")])
            ),
        ],
        True,
    ),
    "StreamClassify fails": (
        "embedgrpc.v1.ClassifyService/StreamClassify",
        [classify.StreamClassifyRequest()],
        False,
    ),
    "ListModels": ("embedgrpc.v1.ModelService/ListModels", [models.ListModelsRequest()], True),
    "GetModel fails": ("embedgrpc.v1.ModelService/GetModel", [models.GetModelRequest()], False),
    "GetServer": ("embedgrpc.v1.ModelService/GetServer", [models.GetServerRequest()], True),
    "Tokenize": (
        "embedgrpc.v1.TokenizerService/Tokenize",
        [tokenizer.TokenizeRequest(texts=["a"])],
        True,
    ),
    "CountTokens fails": (
        "embedgrpc.v1.TokenizerService/CountTokens",
        [tokenizer.CountTokensRequest()],
        False,
    ),
    "Check": ("grpc.health.v1.Health/Check", [health_pb2.HealthCheckRequest()], True),
}


async def _call(
    service: Service, path: str, messages: Sequence[Any], metadata: Sequence[tuple[str, str]]
) -> tuple[dict[str, Any], grpc.aio.AioRpcError | None]:
    """Make a call of any shape; return its trailing metadata, and how it failed."""
    begin: Any = service.client.channel.stream_stream(f"/{path}")
    made = [message.SerializeToString() for message in messages]
    stream = begin(iter(made), timeout=PATIENCE_S, metadata=metadata)
    try:
        _ = [one async for one in stream]
    except grpc.aio.AioRpcError as error:
        return dict(error.trailing_metadata() or ()), error
    return dict(await stream.trailing_metadata()), None


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CALLS)
async def test_a_request_id_comes_back(service: Service, name: str) -> None:
    """It is in the trailing metadata of every call, and in the ErrorInfo of those that fail."""
    path, messages, succeeds = CALLS[name]
    trailing, error = await _call(service, path, messages, [("x-request-id", ID)])
    assert trailing["x-request-id"] == ID
    assert (error is None) == succeeds
    if error is not None:
        assert read_failure(error).metadata["requestId"] == ID


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["Embed", "Embed fails", "StreamEmbed", "StreamEmbed fails"])
@pytest.mark.parametrize(
    ("values", "returned"),
    [
        ([], None),
        ([""], None),
        (["a" * 128], "a" * 128),
        (["a" * 129], None),
        (["two words"], None),
        (['"quoted"'], None),
        (["<b>"], None),
        (["first", "second"], "first"),
        (["not valid", "second"], None),
    ],
)
async def test_other_request_ids_are_ignored(
    service: Service, name: str, values: list[str], returned: str | None
) -> None:
    """An id that is too long or has other characters changes nothing; of several one counts."""
    path, messages, _ = CALLS[name]
    trailing, error = await _call(
        service, path, messages, [("x-request-id", value) for value in values]
    )
    assert trailing.get("x-request-id") == returned
    if error is not None:
        failure = read_failure(error)
        assert failure.reason
        assert failure.metadata.get("requestId") == returned


async def test_a_refusal_says_whose_it_is(serve: Serve, backend: HashBackend) -> None:
    """Refusals that are alike in all else have each the id of its own call."""
    service = await serve(backend=backend, max_queued_inputs=1)
    backend.hold()
    path, messages, _ = CALLS["Embed"]
    first: Any = service.client.channel.unary_unary(f"/{path}")
    working = first(messages[0].SerializeToString(), timeout=PATIENCE_S)
    await asyncio.to_thread(backend.running.wait)
    seen = set()
    for identifier in ("one", "two", "two", ""):
        _, error = await _call(service, path, messages, [("x-request-id", identifier)])
        assert error is not None
        failure = read_failure(error)
        assert failure.label == "QUEUE_FULL"
        seen.add(failure.metadata.get("requestId"))
    assert seen == {"one", "two", None}
    backend.release()
    await working


def _fail(*_: object) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("texts", [1, 2])
async def test_the_log_names_the_call(
    serve: Serve,
    backend: HashBackend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    texts: int,
) -> None:
    """A line about a call that failed has its request id beside the incident."""
    service = await serve(backend=backend)
    monkeypatch.setattr(Embedder, "finish", _fail)
    request = embedding.EmbedRequest(texts=["a"] * texts)
    with caplog.at_level(logging.ERROR):
        _, error = await _call(service, CALLS["Embed"][0], [request], [("x-request-id", "call-7")])
    assert error is not None
    failure = read_failure(error)
    assert failure.reason == "INTERNAL"
    lines = [record.__dict__ for record in caplog.records if "incident" in record.__dict__]
    named = [line for line in lines if line.get("request_id") == "call-7"]
    assert [line["incident"] for line in named] == [failure.metadata["incident"]]


async def test_the_span_names_the_call() -> None:
    """The attribute is that of the semantic conventions: a list of one."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    interceptor = TracingInterceptor(provider.get_tracer("tests"))

    class _Context:
        def peer(self) -> str:
            return "unix:"

        def code(self) -> int:
            return 0

    for metadata in ([("x-request-id", ID)], [("x-request-id", "no id")], []):
        with interceptor._span("a.Service/Method", metadata, _Context()):
            pass
    name = Attribute.RPC_REQUEST_METADATA_REQUEST_ID
    assert name == "rpc.request.metadata.x-request-id"
    found = [dict(span.attributes or {}).get(name) for span in exporter.get_finished_spans()]
    assert found == [(ID,), None, None]
