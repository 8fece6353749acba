import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1.embedding_service_pb2 import EmbedOptions, EmbedRequest
from tests.backends.triton.kserve_server import Fault
from tests.server.failures import failure_of
from tests.server.loading.triton_server import Upstream
from tests.server.service import EMBED, PATIENCE_S, Service, serving, settings_for, until
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING
from tests.server.telemetry.test_tracing import PARENT_ID, TRACE_ID

TEXTS = ("a short text", "one that is quite a bit longer than the other one is", "x")


@asynccontextmanager
async def served(
    cache_dir: Path, *models: ModelSettings, load: bool = True, **changes: Any
) -> AsyncIterator[Service]:
    """Serves models from here."""
    settings = settings_for(*models, cache_dir=cache_dir, **changes)
    async with serving(settings, load=load) as service:
        yield service


async def embed(service: Service, model: str = "far") -> Any:
    """The vectors of the texts, float32 [texts, dimensions]."""
    response = await service.client.embed(*TEXTS, model=model)
    return np.array([list(one.dense.values) for one in response.embeddings], np.float32)


async def description_of(service: Service, model: str) -> Any:
    """What the listing says of a model."""
    request = models.GetModelRequest(model=model)
    return (await service.client.models.GetModel(request)).model


async def test_vectors_are_those_of_the_graph_here(upstream: Upstream, cache_dir: Path) -> None:
    """A model on a server answers as it does in this process, and says so by its fingerprint."""
    async with served(cache_dir, upstream.settings(), EMBED) as service:
        near, far = await embed(service, "embed"), await embed(service)
        np.testing.assert_allclose(far, near, atol=1e-6)
        assert np.abs(far).max() > 0.01
        here, there = [await description_of(service, one) for one in ("embed", "far")]
        assert there.fingerprint == here.fingerprint == upstream.graph.content_hash
        assert there.weight_type == "float32"
        assert there.batch_tokens == here.batch_tokens == 512
        assert (here.backend, there.backend) == (
            models.MODEL_BACKEND_ONNX_RUNTIME,
            models.MODEL_BACKEND_TRITON,
        )
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING


async def test_vectors_of_tokens_come_from_there(upstream: Upstream, cache_dir: Path) -> None:
    """They are those of the graph here; a repository without them is to be written again."""
    options = EmbedOptions(token_vectors=True)
    async with served(cache_dir, upstream.settings(), EMBED) as service:
        near, far = [
            (await service.client.embed(*TEXTS, model=one, options=options)).embeddings
            for one in ("embed", "far")
        ]
        for here, there in zip(near, far, strict=True):
            assert list(there.token_vectors.ids) == list(here.token_vectors.ids)
            np.testing.assert_allclose(
                there.token_vectors.vectors.values, here.token_vectors.vectors.values, atol=1e-6
            )
        assert (await description_of(service, "far")).token_dimensions == 36
    upstream.server.outputs = [one for one in upstream.server.outputs if one[0] != "token_vectors"]
    async with served(cache_dir, upstream.settings()) as service:
        failure = await failure_of(service.client.embed(*TEXTS, options=options))
        assert failure.reason == "UNSUPPORTED"
        assert "triton-repo" in failure.details
        assert (await description_of(service, "far")).token_dimensions == 0


async def test_files_may_be_named(upstream: Upstream, cache_dir: Path) -> None:
    """Without parameters the setting says where the tokenizer is; the fingerprint is another."""
    upstream.server.parameters = {}
    upstream.server.outputs = [("sentence_embedding", "FP16", [-1])]
    model = upstream.settings(files=str(upstream.folder))
    async with served(cache_dir, model, EMBED) as service:
        near, far = await embed(service, "embed"), await embed(service)
        np.testing.assert_allclose(far, near, atol=2e-3)
        first = (await description_of(service, "far")).fingerprint
    assert first != upstream.graph.content_hash
    assert len(bytes.fromhex(first)) == hashlib.sha256().digest_size
    upstream.server.name = "m"
    other = model.model_copy(update={"source": f"{model.source}:1"})
    async with served(cache_dir, other) as service:
        assert (await description_of(service, "far")).fingerprint != first


async def test_another_space_is_not_taken_for_this_one(
    upstream: Upstream, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A declared fingerprint is not returned where weights here, or settings, contradict it."""
    declared = upstream.graph.content_hash
    upstream.server.parameters["embedgrpc_fingerprint"] = "0" * 64
    async with served(cache_dir, upstream.settings()) as service:
        told = (await description_of(service, "far")).fingerprint
    assert told not in ("0" * 64, declared)
    assert "fingerprint not taken" in [one.getMessage() for one in caplog.records]
    upstream.server.parameters["embedgrpc_fingerprint"] = declared
    async with served(cache_dir, upstream.settings(prompts={"query": "q: "})) as service:
        assert (await description_of(service, "far")).fingerprint not in (told, declared)


async def test_a_server_that_comes_later(upstream: Upstream, cache_dir: Path) -> None:
    """The other models are served while one is waited for; it is served as soon as it is there."""
    upstream.server.stop()
    async with served(cache_dir, upstream.settings(), EMBED) as service:
        await embed(service, "embed")
        assert await service.client.status(f"{EMBEDDING}/far") == NOT_SERVING
        failure = await failure_of(service.client.embed("a text", model="far"))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.retry_delay_s
        upstream.server.start()
        model = service.server.catalog.find("far")
        await until(lambda: model.loaded)
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING
        await embed(service)


async def test_a_server_that_comes_with_another_model(
    upstream: Upstream, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that appears but cannot be served is reported once, and not retried."""
    upstream.server.ready = False
    async with served(cache_dir, upstream.settings(), EMBED):
        upstream.server.outputs = [("scores", "FP32", [1])]
        upstream.server.ready = True
        await until(lambda: "model failed to load" in [one.getMessage() for one in caplog.records])
    (record,) = [one for one in caplog.records if one.getMessage() == "model failed to load"]
    assert "has the outputs scores" in record.__dict__["problem"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parameters": {}}, "set files for this model"),
        ({"parameters": {"embedgrpc_source": "/nowhere/at/all"}}, "set files for this model inst"),
        ({"outputs": [("sentence_embedding", "FP32", [35])]}, "has the shape [35] after the batch"),
        ({"outputs": [("scores", "FP32", [1])]}, "has the outputs scores; one must be"),
        ({"inputs": [("input_ids", "INT64"), ("attention_mask", "INT64"), ("task", "INT64")]},
         "has an input 'task', which is not supported"),
        ({"inputs": [("text", "BYTES"), ("task", "INT64")]}, "takes texts in its input text and"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_refused(
    change: dict[str, Any], problem: str, upstream: Upstream, cache_dir: Path
) -> None:
    """A model that would be served wrongly ends the start, with one line."""
    for name, value in change.items():
        setattr(upstream.server, name, value)
    async with Server(settings_for(upstream.settings(), cache_dir=cache_dir)) as server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"triton_ca_file": "/nowhere/ca.pem"}, "triton_ca_file /nowhere/ca.pem cannot be read"),
        ({"triton_key_file": "/nowhere/key.pem"}, "must be set together"),
    ],
)
async def test_tls_files_are_needed(
    settings: dict[str, str], problem: str, cache_dir: Path
) -> None:
    """A file that cannot be read ends the start."""
    model = ModelSettings(source="triton+tls:127.0.0.1:1/m")
    async with Server(settings_for(model, cache_dir=cache_dir, **settings)) as server:
        with pytest.raises(StartError, match=problem):
            await server.load()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.QUEUE_FULL, (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")),
        (Fault.QUEUED_TOO_LONG, (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")),
        (Fault.UNAVAILABLE, (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")),
        (Fault.UNLOADED, (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")),
        (Fault.BROKEN, (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")),
        (Fault.REFUSED, (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")),
        (Fault.SHORT_BYTES, (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")),
        (Fault.NAN, (grpc.StatusCode.INTERNAL, "NON_FINITE_OUTPUT")),
    ],
)
async def test_failures_have_their_reasons(
    fault: Fault,
    expected: tuple[grpc.StatusCode, str],
    upstream: Upstream,
    cache_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Callers get the reason of a failure, and never the server's own message."""
    async with served(cache_dir, upstream.settings()) as service:
        upstream.server.fault = fault
        failure = await failure_of(service.client.embed(*TEXTS))
        assert (failure.code, failure.reason) == expected
        assert "qwxz" not in failure.trailing + failure.details
    lines = [str(one.__dict__) for one in caplog.records]
    assert not [one for one in lines if "qwxz" in one or "/models/" in one]


async def test_health_follows_the_servers_at_once(upstream: Upstream, cache_dir: Path) -> None:
    """A model is NOT_SERVING as soon as its last server is lost, and SERVING when one is back."""
    # No canary comes between.
    async with served(cache_dir, upstream.settings(), health_interval_s=3600) as service:
        model = service.server.catalog.find("far")
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING
        upstream.server.stop()
        await until(_is(model, ready=False))
        assert await service.client.status(f"{EMBEDDING}/far") == NOT_SERVING
        failure = await failure_of(service.client.embed("a text"))
        assert failure.reason == "BACKEND_UNAVAILABLE"
        upstream.server.start()
        await until(_is(model, ready=True))
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING
        await embed(service)


def _is(model: Any, *, ready: bool) -> Callable[[], bool]:
    return lambda: (model.state.name == "READY") == ready


async def test_a_stop_does_not_wait_for_silent_servers(upstream: Upstream, cache_dir: Path) -> None:
    """A server that never answers delays neither the stop nor the end of a call."""
    async with served(cache_dir, upstream.settings(), shutdown_grace_s=0.1) as service:
        upstream.server.fault = Fault.SILENT
        upstream.server.entered.clear()
        call = asyncio.ensure_future(failure_of(service.client.embed("a text")))
        await until(upstream.server.entered.is_set)
        await service.server._resources.aclose()
        assert upstream.server.cancelled.is_set()
        assert (await call).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_batches_follow_the_servers_limits(upstream: Upstream, cache_dir: Path) -> None:
    """Batches are at most max_batch_size, and one runs on each instance."""
    upstream.server.batch_max = 4
    upstream.server.instances = 2
    async with served(cache_dir, upstream.settings()) as service:
        upstream.server.shapes.clear()
        await service.client.embed(*(f"text {index}" for index in range(30)))
        assert max(shape[0] for shape in upstream.server.shapes) <= 4
        scheduler = service.server.catalog.find("far").ready().scheduler
        assert scheduler._backend.lanes == 3
        assert scheduler.budget.sequences == 4
        # As many as the longest sequences of a request have.
        assert scheduler.budget.tokens == 4 * 96


async def test_a_trace_goes_on_in_the_servers(
    upstream: Upstream,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traced call reaches the server with its trace, as a child of the span here."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    async with served(cache_dir, upstream.settings(), health_interval_s=3600) as service:
        upstream.server.metadata.clear()
        await service.client.embedding.Embed(
            EmbedRequest(texts=TEXTS),
            metadata=[("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")],
            timeout=PATIENCE_S,
        )
        (sent,) = upstream.server.metadata
    version, trace, parent, flags = sent["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE_ID, "01")
    assert parent != PARENT_ID
    spans = capsys.readouterr().out
    assert f'"span_id": "0x{parent}"' in spans
    assert f'"parent_id": "0x{PARENT_ID}"' in spans
