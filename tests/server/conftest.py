from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.hash_backend import HashBackend
from tests.server.loading.triton_server import Upstream, serving_upstream
from tests.server.probed_once import probing_once
from tests.server.service import Service, serving, settings_for

Serve = Callable[..., Awaitable[Service]]


@pytest.fixture(scope="module", autouse=True)
def _probed_once() -> Iterator[None]:
    with probing_once():
        yield


@pytest.fixture
def backend() -> HashBackend:
    """The backend of the servers in this test that are started with it."""
    return HashBackend()


@pytest.fixture
def upstream(cache_dir: Path) -> Iterator[Upstream]:
    """Serve `bert-cls` as a repository of `embedgrpc triton-repo` does."""
    with serving_upstream(cache_dir) as serving_model:
        yield serving_model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with its defaults for the tests of a module, which run on the module's loop."""
    # A check of the model would time out between two tests, while the loop stands still.
    async with serving(settings_for(cache_dir=cache_dir, health_interval_s=3600)) as service:
        yield service


@pytest.fixture
async def serve(cache_dir: Path) -> AsyncIterator[Serve]:
    """Start servers that run until the test ends."""
    async with AsyncExitStack() as resources:

        async def start(
            *models: ModelSettings, backend: HashBackend | None = None, **changes: Any
        ) -> Service:
            settings = settings_for(*models, cache_dir=cache_dir, **changes)
            if backend is None:
                return await resources.enter_async_context(serving(settings))
            # Before the server's own end, which waits for runs in progress.
            service = await resources.enter_async_context(serving(settings, backend.open))
            resources.callback(backend.release)
            return service

        yield start
