from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.kserve.requests import KServe
from tests.server.service import CROSS, EMBED, FIXTURES, Service, serving, settings_for

MODELS = (
    EMBED,
    CROSS,
    *(
        ModelSettings(id=name, source=str(FIXTURES / name))
        for name in ("gemma-dense", "splade-bert", "classify-nli")
    ),
)
MAX_INPUTS = 32


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with an embedder, a cross-encoder, a sparse model and a classifier."""
    settings = settings_for(*MODELS, cache_dir=cache_dir, kserve=True, max_inputs=MAX_INPUTS)
    async with serving(settings) as one:
        yield one


@pytest.fixture(scope="package")
def kserve(service: Service) -> KServe:
    """A client of the service."""
    return KServe(service)
