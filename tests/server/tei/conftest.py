from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.tei.v1 import tei_pb2_grpc
from tests.server.service import CROSS, EMBED, FIXTURES, Service, serving, settings_for

MODELS = (
    CROSS,
    EMBED,
    *(
        ModelSettings(id=name, source=str(FIXTURES / name))
        for name in ("gemma-dense", "splade-bert", "classify-nli", "classify-toxicity")
    ),
)


class Tei:
    """The stubs of tei.v1 on a connection of its own.

    Args:
        service: The server.
    """

    def __init__(self, service: Service) -> None:
        stubs: Any = tei_pb2_grpc
        channel = service.client.channel
        self.info = stubs.InfoStub(channel)
        self.embed = stubs.EmbedStub(channel)
        self.predict = stubs.PredictStub(channel)
        self.rerank = stubs.RerankStub(channel)
        self.tokenize = stubs.TokenizeStub(channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server whose default model is not that of tei.v1."""
    settings = settings_for(*MODELS, cache_dir=cache_dir, tei_model="embed")
    async with serving(settings) as one:
        yield one


@pytest.fixture(scope="module")
def tei(service: Service) -> Tei:
    """A client of tei.v1."""
    return Tei(service)
