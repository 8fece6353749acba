"""Streams end when their credentials do."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls import call_sweeper
from embedgrpc.server.identity.authenticator import Authenticator
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.hash_backend import HashBackend
from tests.server.identity.callers import OK, KeyFile, answer_of, bearer, by_grpc
from tests.server.identity.issuer import AUDIENCE, NAME, Issuer
from tests.server.service import EMBED, PATIENCE_S, Service, serving, settings_for, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXPIRED = ("UNAUTHENTICATED", "EXPIRED_CREDENTIALS")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at open streams without waiting for a second."""
    monkeypatch.setattr(call_sweeper, "_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(call_sweeper, "_SWEEP_INTERVAL_S", 0.01)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    """The file of keys, to which a test adds its own."""
    return KeyFile(tmp_path_factory.mktemp("keys"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    cache_dir: Path, keys: KeyFile, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A server that takes keys and tokens."""
    jwks = tmp_path_factory.mktemp("jwks") / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    settings = settings_for(
        EMBED,
        cache_dir=cache_dir,
        jwt_issuer=NAME,
        jwt_audience=AUDIENCE,
        jwks_file=str(jwks),
        **keys.settings,
    )
    async with serving(settings) as one:
        yield one


def authenticator_of(service: Service) -> Authenticator:
    """What knows the callers of a server."""
    authenticator = service.server.open_calls.authenticator
    assert authenticator is not None
    return authenticator


class Embedding:
    """A stream that embeds texts, open as long as the test likes."""

    def __init__(self, service: Service, credentials: str) -> None:
        self.call = service.client.embedding.StreamEmbed(
            metadata=[bearer(credentials)], timeout=PATIENCE_S
        )

    async def begin(self) -> None:
        """Send the setup, and wait until the stream is ready."""
        await self.call.write(pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup()))
        assert (await self.call.read()).WhichOneof("step") == "ready"

    async def embed(self, *texts: str) -> None:
        """Send texts."""
        inputs = [pb.StreamEmbedInput(id=text, text=text) for text in texts]
        await self.call.write(pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs)))

    async def results(self) -> list[str]:
        """The ids of one message of results."""
        return [one.id for one in (await self.call.read()).results.results]

    async def ended(self) -> Any:
        """How it ended, without another message."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await self.call.read()
        return answer_of(ended.value)


async def test_a_stream_ends_when_its_key_is_taken_back(service: Service, keys: KeyFile) -> None:
    """It answers what it has accepted. Streams of others go on."""
    key, other = keys.add("one"), keys.add("other")
    authenticator_of(service).reload()
    stream, staying = Embedding(service, key), Embedding(service, other)
    for one in (stream, staying):
        await one.begin()
    await stream.embed("a", "b")
    keys.remove(key)
    assert await stream.results() == ["a", "b"]
    assert await stream.ended() == EXPIRED
    await staying.embed("c")
    assert await staying.results() == ["c"]
    await staying.call.done_writing()
    assert await staying.call.read() is grpc.aio.EOF


async def test_a_stream_ends_when_its_key_has_other_rights(service: Service, keys: KeyFile) -> None:
    """Otherwise it would go on with those of before."""
    key = keys.add("one")
    authenticator_of(service).reload()
    stream = Embedding(service, key)
    await stream.begin()
    content = keys.path.read_bytes()
    keys.write(content + b'models = ["embed"]\n')
    assert await stream.ended() == EXPIRED
    assert await by_grpc(service, bearer(key)) == OK


async def test_a_stream_ends_when_its_token_expires(
    service: Service, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the server."""
    token = issuer.token()
    stream = Embedding(service, token)
    await stream.begin()
    await stream.embed("a")
    assert await stream.results() == ["a"]
    verifier = authenticator_of(service)._verifier
    assert verifier is not None
    monkeypatch.setattr(verifier, "_clock", lambda: time.time() + 3600 + 31)
    assert await stream.ended() == EXPIRED
    assert await by_grpc(service, bearer(token)) == EXPIRED


async def test_a_silent_stream_of_another_kind_ends(service: Service, keys: KeyFile) -> None:
    """Reflection waits for its client most of the time."""
    key = keys.add("one")
    authenticator_of(service).reload()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(service.client.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    silence = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield asked
        await silence.wait()

    stream = stub.ServerReflectionInfo(requests(), metadata=[bearer(key)], timeout=PATIENCE_S)
    assert (await stream.read()).list_services_response.service
    keys.remove(key)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert answer_of(ended.value) == EXPIRED
    silence.set()


async def test_a_call_that_has_begun_is_finished(
    cache_dir: Path, tmp_path: Path, backend: HashBackend
) -> None:
    """A unary call ends soon by itself."""
    keys = KeyFile(tmp_path)
    key = keys.add("one")
    settings = settings_for(EMBED, cache_dir=cache_dir, **keys.settings)
    async with serving(settings, backend.open) as service:
        backend.hold()
        running = asyncio.create_task(by_grpc(service, bearer(key)))
        await until(backend.running.is_set)
        # The caller's name stands for it in the fair shares of a model.
        assert service.admission().ledger.held_tokens(WorkClass.INTERACTIVE, "one")
        keys.remove(key)
        authenticator_of(service).reload()
        assert await by_grpc(service, bearer(key)) == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
        assert not running.done()
        backend.release()
        assert await running == OK
