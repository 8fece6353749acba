"""When a service is ready, which models are retried, and what ends the start."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from tests.models.sources.hub_server import Hub, Repository, serve_hub
from tests.server.hash_backend import HashBackend, vector_of
from tests.server.server_process import Process, started
from tests.server.service import CROSS, EMBED, FIXTURES, Client, serving, settings_for
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, RERANK, SERVING, Watcher

BROKEN = ModelSettings(id="broken", source=str(FIXTURES / "nowhere"))
UP, DOWN = SERVING, NOT_SERVING


@pytest.mark.parametrize(
    ("models", "readiness", "embedding", "rerank"),
    [
        ((BROKEN, EMBED), "default", DOWN, DOWN),
        ((BROKEN, EMBED), "any", UP, UP),
        ((BROKEN, EMBED), "all", DOWN, DOWN),
        ((EMBED, BROKEN), "default", UP, UP),
        ((EMBED, BROKEN), "all", DOWN, DOWN),
        ((EMBED, CROSS), "all", UP, UP),
        # A cross-encoder does not embed: the default of the service is the next model.
        ((CROSS, EMBED), "default", UP, UP),
        ((CROSS,), "any", DOWN, UP),
        ((CROSS,), "all", DOWN, UP),
    ],
)
async def test_a_service_is_ready_with_its_models(
    cache_dir: Path, models: tuple[ModelSettings, ...], readiness: str, embedding: int, rerank: int
) -> None:
    """By default readiness follows the default model; the process is alive in any case."""
    settings = settings_for(*models, cache_dir=cache_dir, readiness=readiness)
    async with serving(settings) as service:
        status = service.client.status
        assert (await status(EMBEDDING), await status(RERANK)) == (embedding, rerank)
        assert await status("") == SERVING
        for model in models:
            usable = model not in (BROKEN, CROSS)
            assert await status(f"{EMBEDDING}/{model.name}") == (UP if usable else DOWN)


async def test_readiness_follows_the_default_model(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services are not ready while the default model answers wrongly, whatever others do."""
    settings = settings_for(EMBED, CROSS, cache_dir=cache_dir, health_interval_s=0.02)
    async with serving(settings) as service:
        watcher = Watcher(service.client, EMBEDDING)
        assert await watcher.next() == SERVING
        first = next(iter(service.server.catalog))
        expected = service.server._monitor._expected
        right = expected[first]
        monkeypatch.setitem(expected, first, right[::-1])
        assert await watcher.next() == NOT_SERVING
        assert await service.client.status(RERANK) == NOT_SERVING
        assert await service.client.status(f"{RERANK}/cross") == SERVING
        monkeypatch.setitem(expected, first, right)
        assert await watcher.next() == SERVING


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with the model acme/bert, used by child processes."""
    with serve_hub() as served:
        served.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


FROM_HUB = ("--model", "far=hf:acme/bert")
HERE = ("--model", f"near={EMBED.source}")


async def test_a_short_outage_of_the_hub(hub: Hub, cache_dir: Path) -> None:
    """The server retries a model that the Hub cannot deliver now, and is ready once it has it."""
    hub.status = 503
    async with started(*FROM_HUB, *HERE, cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        waited = await server.until("model is waited for")
        assert (waited["model"], waited["level"]) == ("far", "warning")
        client = Client(address)
        async with client.channel:
            watcher = Watcher(client, EMBEDDING)
            assert await watcher.next() == NOT_SERVING
            assert await client.status(f"{EMBEDDING}/near") == SERVING
            hub.status = 0
            assert await watcher.next() == SERVING
            await client.embed("a text", model="far")
    assert server.events("model failed to load") == []


async def test_nothing_serves_while_every_model_is_waited_for(hub: Hub, cache_dir: Path) -> None:
    """The server stays up without a model, and logs "serving" once it has one."""
    hub.status = 429
    async with started(*FROM_HUB, cache_dir=cache_dir) as server:
        await server.until("model is waited for")
        assert server.events("serving") == []
        hub.status = 0
        await server.until("serving")
        assert [line["model"] for line in server.events("model ready")] == ["far"]


async def test_a_model_that_is_slow_at_first_is_tried_again(cache_dir: Path) -> None:
    """A model whose first check times out on a busy machine is served later."""
    backend = HashBackend()
    slow = threading.Event()

    def answer(ids: IntArray) -> FloatArray:
        if not slow.is_set():
            slow.set()
            # Far longer than the timeout of the check.
            threading.Event().wait(1)
        return vector_of(ids)

    backend.answer = answer
    settings = settings_for(EMBED, cache_dir=cache_dir, health_timeout_s=0.2)
    async with serving(settings, backend.open) as service:
        assert await service.client.status(EMBEDDING) == NOT_SERVING
        watcher = Watcher(service.client, EMBEDDING)
        assert await watcher.next() == NOT_SERVING
        backend.answer = vector_of
        assert await watcher.next() == SERVING
        await service.client.embed("a text")


@pytest.mark.slow
async def test_a_model_that_turns_out_wrong_is_given_up(hub: Hub, cache_dir: Path) -> None:
    """Once the Hub answers that there is no such model, the server stops retrying."""
    hub.status = 503
    async with started(*FROM_HUB, *HERE, cache_dir=cache_dir) as server:
        await server.until("model is waited for")
        del hub.repositories["acme/bert"]
        hub.status = 0
        failed = await server.until("model failed to load")
        assert (failed["model"], failed["level"]) == ("far", "error")


async def test_the_server_ends_once_no_model_can_be_loaded(hub: Hub, cache_dir: Path) -> None:
    """A server that retries its only model ends once that turns out to be wrong."""
    hub.status = 503
    async with started(*FROM_HUB, cache_dir=cache_dir) as server:
        await server.until("model is waited for")
        hub.repositories.clear()
        hub.status = 0
        ended, (problem,) = await _refusal(server)
        assert ended == 2
        assert problem.startswith("embedgrpc: far: ")


async def _refusal(server: Process) -> tuple[int, list[str]]:
    return await server.ended(), server.problems


@pytest.mark.parametrize(
    ("models", "code", "names"),
    [
        ((*HERE, *FROM_HUB), 1, ["far"]),
        pytest.param((*HERE, "--model", "broken=./nowhere"), 2, ["broken"], marks=pytest.mark.slow),
    ],
    ids=["passing", "lasting"],
)
async def test_all_models_may_be_required(
    hub: Hub, cache_dir: Path, models: tuple[str, ...], code: int, names: list[str]
) -> None:
    """Then a model that fails ends the server with one line, and code 1 where a retry may help."""
    hub.status = 503
    async with started("--require-all-models", *models, cache_dir=cache_dir) as server:
        ended, problems = await _refusal(server)
        assert ended == code
        assert [line.split(":")[1].strip() for line in problems] == names
        assert server.events("serving") == []


async def test_all_required_models_are_loaded(cache_dir: Path) -> None:
    """Where every model loads, the requirement changes nothing."""
    settings = settings_for(EMBED, CROSS, cache_dir=cache_dir, require_all_models=True)
    async with serving(settings) as service:
        await service.client.embed("a text")


async def test_no_model_ends_the_start(cache_dir: Path) -> None:
    """If no model can ever be loaded, the server ends and names each."""
    other: Any = BROKEN.model_copy(update={"id": "other"})
    async with Server(settings_for(BROKEN, other, cache_dir=cache_dir)) as server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert caught.value.settings_are_wrong
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["broken", "other"]
