"""The limits of callers that prove who they are, from the file of keys."""

from pathlib import Path

import pytest

from embedgrpc.server.rates.limits import default_limits
from embedgrpc.server.rates.rates import Rates
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile, bearer, by_grpc
from tests.server.rates.clock import Clock
from tests.server.service import PATIENCE_S, Service


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    """A file of API keys, still without any."""
    return KeyFile(tmp_path)


async def test_a_key_has_the_limits_of_its_table(serve: Serve, keys: KeyFile) -> None:
    """Its own limits replace the server's, and hold for the caller, whichever key it uses."""
    plain = keys.add("plain")
    small = keys.add("small", "limits = { requests_per_s = 1, request_burst = 2 }")
    other_small = keys.add("small", "limits = { requests_per_s = 1, request_burst = 2 }")
    free = keys.add("free", "limits = { requests_per_s = 0 }")
    service = await serve(
        http_address="127.0.0.1:0", requests_per_s=1, request_burst=4, **keys.settings
    )
    service.server.open_calls.rates = Rates(default_limits(service.server._settings), clock=Clock())
    assert [await accepted(service, key) for key in (plain, small, free)] == [4, 2, 10]
    failure = await failure_of(embed(service, other_small))
    assert failure.reason == "RATE_LIMITED"
    assert failure.metadata["caller"] == "small"
    assert failure.metadata["burst"] == "2"
    reply = await HttpClient(service).post(
        "/v1/embeddings", {"input": "a text"}, authorization=f"Bearer {plain}"
    )
    assert reply.status == 429
    assert "for caller 'plain'" in reply.json["error"]["message"]


async def test_who_is_not_known_uses_nothing_of_anybody(serve: Serve, keys: KeyFile) -> None:
    """A wrong key is refused as such, however often, and costs no caller anything."""
    key = keys.add("one")
    service = await serve(requests_per_s=1, request_burst=1, **keys.settings)
    for _ in range(5):
        assert (await by_grpc(service, bearer("eg_wrong"))).status == "UNAUTHENTICATED"
    await embed(service, key)


async def embed(service: Service, key: str) -> None:
    """Embed a text with a key."""
    await service.client.embedding.Embed(
        pb.EmbedRequest(texts=["a text"]), metadata=(bearer(key),), timeout=PATIENCE_S
    )


async def accepted(service: Service, key: str) -> int:
    """Return how many of ten calls are not refused."""
    return sum([(await by_grpc(service, bearer(key))).status == "OK" for _ in range(10)])
