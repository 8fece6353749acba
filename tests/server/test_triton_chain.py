"""From a client of ours through a real tritonserver and back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.model_settings import ModelSettings
from tests.server.service import PATIENCE_S, Service, until
from tests.server.test_health import EMBEDDING, NOT_SERVING, SERVING
from tests.triton.environment import Environment
from tests.triton.models import SOURCES
from tests.triton.server import TritonServer

Serve = Callable[..., Awaitable[Service]]

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


@pytest.mark.parametrize("name", ["bert-mean", "minilm", "gemma-dense"])
async def test_dense_vectors_are_the_same(
    name: str, triton_server: TritonServer, serve: Serve
) -> None:
    """A model that `embedgrpc triton-repo` wrote answers as it does in this process."""
    service = await serve(*near_and_far(triton_server, name))
    near = await service.client.embed(*TEXTS, model="near")
    far = await service.client.embed(*TEXTS, model="far")
    assert far.fingerprint == near.fingerprint
    vectors = [
        np.array([list(one.dense.values) for one in answer.embeddings], np.float32)
        for answer in (near, far)
    ]
    assert np.abs(vectors[0]).max() > 0.01
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)


@pytest.mark.parametrize("name", ["xlmr-bge-m3", "splade-bert", "cross-bert"])
async def test_all_forms_are_the_same(name: str, triton_server: TritonServer, serve: Serve) -> None:
    """So do sparse and multi-vector models, and cross-encoders."""
    service = await serve(*near_and_far(triton_server, name))
    near, far = [service.server.catalog.find(one).ready() for one in ("near", "far")]
    for text in TEXTS:
        call = Call(WorkClass.INTERACTIVE, deadline=time.monotonic() + PATIENCE_S)
        expected, found = await near.probe(text, call), await far.probe(text, call)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert far.metadata.representations == near.metadata.representations
    assert far.fingerprint == near.fingerprint


async def test_a_killed_server_comes_back(
    triton_environment: Environment, triton_repository: Path, serve: Serve
) -> None:
    """Killed, its model is NOT_SERVING; started again, it answers as before."""
    with TritonServer(triton_environment, triton_repository, models=["bert-mean"]) as server:
        _, far = near_and_far(server, "bert-mean")
        service = await serve(far, health_interval_s=3600)
        before = await service.client.embed(*TEXTS)
        model = service.server.catalog.find("far")
        await asyncio.to_thread(server.kill)
        await until(lambda: model.state.name == "FAILED")
        assert await service.client.status(f"{EMBEDDING}/far") == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.client.embed(*TEXTS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(server.start)
        await until(lambda: model.state.name == "READY")
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING
        assert (await service.client.embed(*TEXTS)).embeddings == before.embeddings


async def test_a_server_that_hangs_is_seen(
    triton_environment: Environment, triton_repository: Path, serve: Serve
) -> None:
    """Stopped by a signal, which leaves its connections open, it is given up until it runs on."""
    with TritonServer(triton_environment, triton_repository, models=["bert-mean"]) as server:
        _, far = near_and_far(server, "bert-mean")
        service = await serve(far, health_interval_s=3600)
        model = service.server.catalog.find("far")
        server.pause()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.client.embed(*TEXTS, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: model.state.name == "FAILED")
        server.resume()
        await until(lambda: model.state.name == "READY")
        await service.client.embed(*TEXTS)


async def test_an_unloaded_model_is_seen(
    triton_environment: Environment, triton_repository: Path, serve: Serve
) -> None:
    """A model that the server unloads is NOT_SERVING until it is loaded again."""
    with TritonServer(triton_environment, triton_repository, models=["bert-mean"]) as server:
        _, far = near_and_far(server, "bert-mean")
        service = await serve(far, health_interval_s=3600)
        model = service.server.catalog.find("far")
        await asyncio.to_thread(server.unload, "bert-mean")
        await until(lambda: model.state.name == "FAILED")
        await asyncio.to_thread(server.load, "bert-mean")
        await until(lambda: model.state.name == "READY")
        await service.client.embed(*TEXTS)
