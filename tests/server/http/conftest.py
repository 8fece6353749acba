from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, EMBED, Service, serving, settings_for, until

MODELS = (EMBED, CROSS, ModelSettings(id="org/second", source=EMBED.source))


@asynccontextmanager
async def sharing(
    *models: ModelSettings, cache_dir: Path, **changes: Any
) -> AsyncIterator[Service]:
    """Serve for several tests."""
    # A check of the models would time out between two tests, while the loop stands still.
    changes = {"http_address": "127.0.0.1:0", "health_interval_s": 3600} | changes
    async with serving(settings_for(*models, cache_dir=cache_dir, **changes)) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cache_dir: Path) -> AsyncIterator[Service]:
    """The server of the tests of a module, by way of `service`."""
    async with sharing(*MODELS, cache_dir=cache_dir) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def service(shared: Service) -> AsyncIterator[Service]:
    """A server with an embedding model, a cross-encoder, and a model with a slash in its name.

    The tests of a module share it. Each must run on the loop of the module.
    """
    yield shared
    await until_idle(shared)


async def until_idle(service: Service) -> None:
    """Wait until nothing of a test's calls is left, and forget the client's mistakes."""
    await until(lambda: not len(service.server.open_calls))
    await until(lambda: not service.server.open_calls.limits.held_bytes)
    assert service.server._http is not None
    service.server._http._pace._addresses.clear()


@pytest.fixture
def http(service: Service) -> HttpClient:
    """A client of its HTTP port."""
    return HttpClient(service)


@pytest.fixture
async def own_service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server of one test, which may do with it what it likes."""
    settings = settings_for(*MODELS, cache_dir=cache_dir, http_address="127.0.0.1:0")
    async with serving(settings) as one:
        yield one
