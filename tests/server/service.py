"""A server in this process, and clients of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.server.calls import graceful_stop
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.http import listener
from embedgrpc.server.loading.loading import OpenBackend, open_onnx
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import (
    classify_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
EMBED = ModelSettings(id="embed", source=str(FIXTURES / "bert-cls"))
CROSS = ModelSettings(id="cross", source=str(FIXTURES / "cross-bert"))
# Long enough for a slow machine; the events come far sooner.
PATIENCE_S = 60.0


class Client:
    """One connection and the stubs on it."""

    def __init__(self, address: str, **arguments: int) -> None:
        # By default channels to one address share connections.
        options = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_http_proxy": 0} | {
            key.replace("__", "."): value for key, value in arguments.items()
        }
        self.channel = grpc.aio.insecure_channel(address, options=list(options.items()))
        embedding: Any = embedding_service_pb2_grpc.EmbeddingServiceStub
        reranking: Any = rerank_service_pb2_grpc.RerankServiceStub
        classifying: Any = classify_service_pb2_grpc.ClassifyServiceStub
        listing: Any = model_service_pb2_grpc.ModelServiceStub
        self.embedding = embedding(self.channel)
        self.rerank = reranking(self.channel)
        self.classify = classifying(self.channel)
        self.models = listing(self.channel)
        tokenizing: Any = tokenizer_service_pb2_grpc.TokenizerServiceStub
        self.tokenizer = tokenizing(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def embed(self, *texts: str, **request: Any) -> Any:
        """Embeds texts."""
        timeout_s = request.pop("timeout", PATIENCE_S)
        wait = request.pop("wait_for_ready", False)
        return await self.embedding.Embed(
            embedding_service_pb2.EmbedRequest(texts=texts, **request),
            timeout=timeout_s,
            wait_for_ready=wait,
        )

    async def send_bytes(self, method: str, data: bytes, **call: Any) -> Any:
        """Call a unary method with raw bytes; return the bytes of the response."""
        raw: Any = self.channel.unary_unary(method)
        return await raw(data, timeout=PATIENCE_S, **call)

    async def status(self, service: str) -> Any:
        """Return the health of a service."""
        return (await self.health.Check(health_pb2.HealthCheckRequest(service=service))).status


class Service:
    """A server and a connection to it that was there from the start."""

    def __init__(self, server: Server, client: Client, resources: AsyncExitStack) -> None:
        self.server = server
        self.client = client
        self._resources = resources

    @property
    def address(self) -> str:
        """Where the server listens."""
        return self.server.address

    async def connect(self, **arguments: int) -> Client:
        """Open another connection, closed with the server."""
        client = Client(self.address, **arguments)
        self._resources.push_async_callback(client.channel.close)
        return client

    async def check_alive(self) -> None:
        """Check that calls succeed on the existing connection and on a new one."""
        expected = await self.client.embed("a plain call")
        other = Client(self.address)
        async with other.channel:
            assert await other.embed("a plain call") == expected

    def admission(self) -> Admission:
        """What counts the default model's inputs."""
        loaded = next(iter(self.server.catalog)).ready()
        assert loaded.embedder is not None
        return loaded.embedder.pipeline._admission

    @property
    def bidi(self) -> BidiStream[Any]:
        """The server's side of the only stream that is open."""
        (bidi,) = self.server._open_streams._streams
        return bidi

    @property
    def open_streams(self) -> int:
        """How many streams the server knows."""
        return len(self.server._open_streams._streams)


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition holds; for state that has no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a counter deep inside has no event
            await asyncio.sleep(0.005)


def settings_for(*models: ModelSettings, cache_dir: Path, **changes: Any) -> Settings:
    """Return the settings of a server on a free local port."""
    values: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "device": "cpu",
        "intra_op_threads": 1,
        "cache_dir": cache_dir,
        "models": models or (EMBED,),
        "shutdown_grace_s": 2,
    }
    return Settings(**(values | changes))


@contextmanager
def _nothing_on_its_way() -> Iterator[None]:
    """Let a server end without the moments that it leaves to requests on their way."""
    with (
        patch.object(graceful_stop, "QUIET_S", 0.0),
        patch.object(listener, "QUIET_S", 0.0),
        patch.object(listener, "_SETTLE_S", 0.0),
    ):
        yield


@asynccontextmanager
async def serving(
    settings: Settings, open_backend: OpenBackend = open_onnx, *, load: bool = True
) -> AsyncIterator[Service]:
    """Serve until the block ends."""
    async with AsyncExitStack() as resources:
        server = Server(settings, open_backend=open_backend)
        await server.__aenter__()
        resources.push_async_callback(_end, server)
        if load:
            await server.load()
        # Closed before the server, which would wait for calls that are open.
        async with AsyncExitStack() as clients:
            client = Client(server.address)
            clients.push_async_callback(client.channel.close)
            service = Service(server, client, clients)
            yield service


async def _end(server: Server) -> None:
    """End a server that no client calls any more."""
    with _nothing_on_its_way():
        await server.__aexit__(None, None, None)
