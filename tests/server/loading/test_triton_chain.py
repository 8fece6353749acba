"""From the Python client through a real tritonserver and back."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from embedgrpc.client import AsyncClient, Embeddings, StreamResult
from embedgrpc.client.enums import Representation
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.conftest import Serve
from tests.server.service import PATIENCE_S, Service, until
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING
from tests.triton.environment import Environment
from tests.triton.models import SOURCES
from tests.triton.server import TritonServer

TEXTS = (
    "a short text",
    "one that is quite a bit longer than all of the others are, and says no more than they do",
    "x",
    "The quick brown fox jumps over the lazy dog.",
)

pytestmark = pytest.mark.triton


def near_and_far(server: TritonServer, name: str) -> tuple[ModelSettings, ModelSettings]:
    """A model in this process, and the same on the server."""
    return (
        ModelSettings(id="near", source=SOURCES[name]),
        ModelSettings(id="far", source=f"triton:{server.address}/{name}"),
    )


def assert_same_answers(
    far: Sequence[Embeddings | StreamResult], near: Sequence[Embeddings | StreamResult]
) -> None:
    """Compare dense, sparse and multi-vectors."""
    for one, expected in zip(far, near, strict=True):
        for found, wanted in zip(_arrays(one), _arrays(expected), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def _arrays(answer: Embeddings | StreamResult) -> list[NDArray[Any]]:
    if isinstance(answer, Embeddings):
        return [
            answer.vectors,
            *(array for one in answer.sparse for array in (one.indices, one.values)),
            *(one.values for one in answer.multi_vectors),
        ]
    assert answer.error is None
    return [
        *([answer.vector] if answer.vector is not None else []),
        *((answer.sparse.indices, answer.sparse.values) if answer.sparse else []),
        *([answer.multi_vector.values] if answer.multi_vector else []),
    ]


@pytest.mark.parametrize(
    ("name", "representations"),
    [
        ("bert-mean", ["dense"]),
        pytest.param("minilm", ["dense"], marks=pytest.mark.slow),
        pytest.param("gemma-dense", ["dense"], marks=pytest.mark.slow),
        pytest.param("splade-bert", ["sparse"], marks=pytest.mark.slow),
        ("xlmr-bge-m3", ["dense", "sparse", "multi_vector"]),
    ],
)
async def test_embeddings_are_the_same(
    name: str, representations: list[Representation], triton_server: TritonServer, serve: Serve
) -> None:
    """A model that `embedgrpc triton-repo` wrote answers as it does in this process."""
    service = await serve(*near_and_far(triton_server, name))
    async with AsyncClient(service.address, timeout_s=PATIENCE_S) as client:
        near, far = [
            await client.embed(TEXTS, model=model, representations=representations)
            for model in ("near", "far")
        ]
        assert far.fingerprint == near.fingerprint
        assert np.abs(np.concatenate([one.ravel() for one in _arrays(near)])).max() > 0.01
        assert_same_answers([far], [near])
        near_stream, far_stream = [
            [
                one
                async for one in client.embed_stream(
                    TEXTS * 20, model=model, representations=representations
                )
            ]
            for model in ("near", "far")
        ]
        assert_same_answers(far_stream, near_stream)


@pytest.mark.parametrize(
    "name", ["cross-bert", "xlmr-bge-m3", pytest.param("minilm", marks=pytest.mark.slow)]
)
async def test_rankings_are_the_same(name: str, triton_server: TritonServer, serve: Serve) -> None:
    """By a cross-encoder, by three representations together, by cosine."""
    service = await serve(*near_and_far(triton_server, name))
    async with AsyncClient(service.address, timeout_s=PATIENCE_S) as client:
        near, far = [
            await client.rerank("a fox", list(TEXTS), model=model) for model in ("near", "far")
        ]
    assert [one.index for one in far] == [one.index for one in near]
    np.testing.assert_allclose([one.score for one in far], [one.score for one in near], atol=1e-5)
    assert far.fingerprint == near.fingerprint


@pytest.fixture
def own_server(triton_environment: Environment, triton_repository: Path) -> Iterator[TritonServer]:
    """A server of one model, to be mistreated."""
    with TritonServer(triton_environment, triton_repository, models=["bert-mean"]) as server:
        yield server


async def serve_far(serve: Serve, server: TritonServer) -> tuple[Service, ServedModel]:
    """Serve its model, without health checks of the model."""
    _, far = near_and_far(server, "bert-mean")
    service = await serve(far, health_interval_s=3600)
    return service, service.server.catalog.find("far")


async def test_a_killed_server_comes_back(own_server: TritonServer, serve: Serve) -> None:
    """Killed, its model is NOT_SERVING; started again, it answers as before."""
    service, model = await serve_far(serve, own_server)
    before = await service.client.embed(*TEXTS)
    await asyncio.to_thread(own_server.kill)
    await until(lambda: model.state.name == "UNAVAILABLE")
    assert await service.client.status(f"{EMBEDDING}/far") == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.client.embed(*TEXTS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.to_thread(own_server.start)
    await until(lambda: model.state.name == "READY")
    assert await service.client.status(f"{EMBEDDING}/far") == SERVING
    assert (await service.client.embed(*TEXTS)).embeddings == before.embeddings


@pytest.mark.slow
async def test_a_server_that_hangs_is_seen(own_server: TritonServer, serve: Serve) -> None:
    """Stopped by a signal, which leaves its connections open, it is given up until it runs on."""
    service, model = await serve_far(serve, own_server)
    own_server.pause()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.client.embed(*TEXTS, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: model.state.name == "UNAVAILABLE")
    own_server.resume()
    await until(lambda: model.state.name == "READY")
    await service.client.embed(*TEXTS)


@pytest.mark.slow
async def test_an_unloaded_model_is_seen(own_server: TritonServer, serve: Serve) -> None:
    """A model that the server unloads is NOT_SERVING until it is loaded again."""
    service, model = await serve_far(serve, own_server)
    await asyncio.to_thread(own_server.unload, "bert-mean")
    await until(lambda: model.state.name == "UNAVAILABLE")
    await asyncio.to_thread(own_server.load, "bert-mean")
    await until(lambda: model.state.name == "READY")
    await service.client.embed(*TEXTS)
