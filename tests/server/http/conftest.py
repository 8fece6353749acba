from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, EMBED, Service, serving, settings_for

MODELS = (EMBED, CROSS, ModelSettings(id="org/second", source=EMBED.source))


@pytest.fixture
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with an embedding model, a cross-encoder, and a model with a slash in its name."""
    settings = settings_for(*MODELS, cache_dir=cache_dir, http_address="127.0.0.1:0")
    async with serving(settings) as one:
        yield one


@pytest.fixture
def http(service: Service) -> HttpClient:
    """A client of its HTTP port."""
    return HttpClient(service)
