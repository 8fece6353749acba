"""A model on Triton with a fallback in this process, through the service."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.backends.triton import pool
from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import model_service_pb2 as models
from tests.backends.triton.kserve_server import Fault
from tests.server.conftest import Serve
from tests.server.loading.triton_server import Upstream
from tests.server.server_process import started
from tests.server.service import FIXTURES, Service, settings_for, until
from tests.server.services.test_health import EMBEDDING, SERVING
from tests.triton.environment import Environment
from tests.triton.models import SOURCES
from tests.triton.server import TritonServer

TEXTS = ("a short text", "one that is quite a bit longer than the other one is", "x")
TAKEN_OVER = "fallback takes over"
HANDED_BACK = "fallback not needed any more"


async def embed(service: Service) -> Any:
    """The vectors of the texts, float32 [texts, dimensions]."""
    response = await service.client.embed(*TEXTS)
    return np.array([list(one.dense.values) for one in response.embeddings], np.float32)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log entries about the fallback."""
    told = [one.getMessage() for one in caplog.records]
    return [one for one in told if "fallback" in one]


async def refusal(model: ModelSettings, cache_dir: Path) -> str:
    """Why a model cannot be served; one line."""
    async with Server(settings_for(model, cache_dir=cache_dir)) as server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert caught.value.settings_are_wrong
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_calls_are_answered_while_the_servers_are_away(
    lanes: int, upstream: Upstream, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A killed server changes neither vectors nor health; once back, it is used again."""
    caplog.set_level(logging.INFO, "embedgrpc")
    service = await serve(upstream.settings(fallback=str(upstream.folder)), lanes=lanes)
    before = await embed(service)
    description = (await service.client.models.GetModel(models.GetModelRequest(model="far"))).model
    assert description.device == "triton"
    assert description.fingerprint == upstream.graph.content_hash
    upstream.server.stop()
    calls = await asyncio.gather(*(embed(service) for _ in range(8)))
    for vectors in calls:
        np.testing.assert_allclose(vectors, before, atol=1e-5)
    assert await service.client.status(f"{EMBEDDING}/far") == SERVING
    await until(lambda: TAKEN_OVER in events(caplog))
    upstream.server.start()
    await until(lambda: HANDED_BACK in events(caplog))
    asked = len(upstream.server.shapes)
    np.testing.assert_allclose(await embed(service), before, atol=1e-5)
    assert len(upstream.server.shapes) > asked
    assert await service.client.status(f"{EMBEDDING}/far") == SERVING
    assert [one for one in events(caplog) if one in (TAKEN_OVER, HANDED_BACK)] == [
        TAKEN_OVER,
        HANDED_BACK,
    ]


@pytest.mark.usefixtures("often_checked")
async def test_a_batch_in_progress_is_not_lost(
    upstream: Upstream, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that waits for a server when that goes silent is answered by the fallback."""
    # Two checks must get no answer.
    monkeypatch.setattr(pool, "_CHECK_S", 0.5)
    service = await serve(upstream.settings(fallback=str(upstream.folder)))
    before = await embed(service)
    upstream.server.fault = Fault.SILENT
    upstream.server.entered.clear()
    np.testing.assert_allclose(await embed(service), before, atol=1e-5)
    assert upstream.server.entered.is_set()
    assert await service.client.status(f"{EMBEDDING}/far") == SERVING


async def test_a_fallback_brings_the_files(upstream: Upstream, serve: Serve) -> None:
    """The fallback's files are used where the source that Triton names does not exist."""
    upstream.server.parameters["embedgrpc_source"] = "/nowhere/at/all"
    service = await serve(upstream.settings(fallback=str(upstream.folder)))
    await embed(service)


async def test_another_model_is_no_fallback(upstream: Upstream, cache_dir: Path) -> None:
    """A fallback with another fingerprint ends the start; the error names both."""
    other = FIXTURES / "bert-mean"
    problem = await refusal(
        upstream.settings(files=str(upstream.folder), fallback=str(other)), cache_dir
    )
    assert f"far: {upstream.settings().source} has the fingerprint" in problem
    assert upstream.graph.content_hash[:12] in problem
    assert f"its fallback {other}" in problem
    assert "triton-repo" in problem


async def test_other_settings_are_another_model(upstream: Upstream, cache_dir: Path) -> None:
    """A fallback with other settings than the model on Triton is a different model."""
    model = upstream.settings(fallback=str(upstream.folder), prompts={"query": "q: "})
    assert "has the fingerprint" in await refusal(model, cache_dir)


async def test_a_fallback_must_load(upstream: Upstream, cache_dir: Path) -> None:
    """A fallback that cannot be loaded ends the start."""
    model = upstream.settings(fallback="/nowhere/at/all")
    assert "/nowhere/at/all" in await refusal(model, cache_dir)


async def test_the_refusal_ends_the_command(
    upstream: Upstream, cache_dir: Path, tmp_path: Path
) -> None:
    """`embedgrpc serve` refuses as it does for other settings: one line, and exit code 2."""
    config = tmp_path / "embedgrpc.toml"
    config.write_text(
        f'[[models]]\nsource = "{upstream.settings().source}"\nfiles = "{upstream.folder}"\n'
        f'fallback = "{FIXTURES / "bert-mean"}"\n'
    )
    async with started("--config", str(config), cache_dir=cache_dir) as process:
        assert await process.ended() == 2
    (problem,) = process.problems
    assert "has the fingerprint" in problem


@pytest.mark.slow
@pytest.mark.triton
async def test_a_killed_tritonserver_is_not_missed(
    triton_environment: Environment,
    triton_repository: Path,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a real tritonserver: killed, its model is answered here; started again, there."""
    caplog.set_level(logging.INFO, "embedgrpc")
    with TritonServer(triton_environment, triton_repository, models=["bert-mean"]) as server:
        model = ModelSettings(
            id="far",
            source=f"triton:{server.address}/bert-mean",
            fallback=SOURCES["bert-mean"],
        )
        service = await serve(model)
        before = await embed(service)
        await asyncio.to_thread(server.kill)
        np.testing.assert_allclose(await embed(service), before, atol=1e-5)
        assert await service.client.status(f"{EMBEDDING}/far") == SERVING
        await until(lambda: TAKEN_OVER in events(caplog))
        await asyncio.to_thread(server.start)
        await until(lambda: HANDED_BACK in events(caplog))
        np.testing.assert_allclose(await embed(service), before, atol=1e-5)
