"""The composition root: makes everything, serves, and takes it down in the reverse order."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from importlib.metadata import version
from typing import Any, Self

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.backends.base import BackendError
from embedgrpc.backends.onnx import DeviceError
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.scheduler import BatchObserver
from embedgrpc.models.errors import ModelError
from embedgrpc.server import telemetry
from embedgrpc.server.catalog import Catalog, ModelState, ServedModel
from embedgrpc.server.closing import Doorkeeper
from embedgrpc.server.draining import Draining
from embedgrpc.server.embedding import EmbeddingService
from embedgrpc.server.guard import GuardInterceptor
from embedgrpc.server.health import HealthMonitor, HealthService, Heartbeat
from embedgrpc.server.listing import ModelService
from embedgrpc.server.loading import OpenBackend, load, open_onnx, served_models
from embedgrpc.server.reflection import add_reflection
from embedgrpc.server.reranking import RerankService
from embedgrpc.server.settings import Settings
from embedgrpc.server.totals import BatchTotals
from embedgrpc.v1 import (
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
)

_logger = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; one line that says what to change."""


class Server:
    """A server and all that it owns.

    Use as an async context manager: it listens at once, and `load` brings the models in.

    Args:
        settings: The settings.
        open_backend: Makes what runs a model's graph.

    Attributes:
        address: Where it listens; with the port that was taken for port 0.
        catalog: Its models.
    """

    def __init__(self, settings: Settings, *, open_backend: OpenBackend = open_onnx) -> None:
        self.address = settings.address
        self.catalog = Catalog(served_models(settings))
        self._settings = settings
        self._open_backend = open_backend
        self._resources = AsyncExitStack()
        self._health = HealthService()
        self._heartbeat = Heartbeat()
        self._draining = Draining()
        self._totals = BatchTotals()
        self._observers: list[BatchObserver] = [self._heartbeat, self._totals]
        self._monitor = HealthMonitor(
            self.catalog,
            self._health,
            self._heartbeat,
            interval_s=settings.health_interval_s,
            timeout_s=settings.health_timeout_s,
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            await self._start(resources)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    async def _start(self, resources: AsyncExitStack) -> None:
        door = Doorkeeper()
        interceptors: list[Any] = [door, GuardInterceptor()]
        tracing = telemetry.configure(version("embedgrpc"), os.environ)
        if tracing:
            resources.push_async_callback(asyncio.to_thread, tracing.shutdown)
            interceptors.insert(1, tracing.interceptor())
            self._observers.append(tracing.batch_tracer())
        resources.callback(self._totals.log)
        models = self._models = ExitStack()
        # Off the event loop, which must go on to hear signals: a lane ends its batch first.
        resources.push_async_callback(asyncio.to_thread, models.close)
        self._tasks = await resources.enter_async_context(_Tasks())
        server = grpc.aio.server(
            interceptors=interceptors, options=_channel_arguments(self._settings)
        )
        self._add_services(server)
        await self._monitor.begin()
        self.address = _listen(server, self._settings.address)
        await server.start()
        resources.push_async_callback(door.stop, server, self._settings.shutdown_grace_s)
        resources.callback(self._draining.drain)
        # Their streams never end by themselves, and the stop would wait out its grace for them.
        resources.push_async_callback(self._health.end_watches)

    def _add_services(self, server: grpc.aio.Server) -> None:
        settings = self._settings
        embedding = EmbeddingService(self.catalog, settings, self._draining)
        rerank = RerankService(self.catalog, settings, self._draining)
        listing = ModelService(self.catalog, max_inputs=settings.max_inputs)
        for add, servicer in (
            (embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server, embedding),
            (rerank_service_pb2_grpc.add_RerankServiceServicer_to_server, rerank),
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, listing),
            (health_pb2_grpc.add_HealthServicer_to_server, self._health),
        ):
            add(servicer, server)
        if settings.reflection:
            add_reflection(server)

    async def load(self) -> None:
        """Loads every model. One that fails does not take the others down.

        Raises:
            StartError: None could be loaded.
        """
        problems = [problem for model in self.catalog if (problem := await self._load_one(model))]
        if len(problems) == len(tuple(self.catalog)):
            raise StartError("\n".join(problems))

    async def _load_one(self, model: ServedModel) -> str:
        """Loads a model; returns what is wrong with it, or nothing."""
        began = time.perf_counter()
        try:
            with ExitStack() as resources:
                loaded = await load(
                    model,
                    self._settings,
                    observers=self._observers,
                    resources=resources,
                    open_backend=self._open_backend,
                )
                await self._monitor.admit(model, loaded)
                self._models.push(resources.pop_all())
        except Exception as error:
            # Whatever it is, the others are served. What was not foreseen is logged with its stack.
            model.state = ModelState.FAILED
            await self._monitor.publish()
            foreseen = isinstance(error, ModelError | DeviceError | BackendError | EngineError)
            _logger.exception(
                "model failed to load",
                extra={"model": model.id, "problem": str(error)},
                exc_info=not foreseen,
            )
            return f"{model.id}: {error}"
        self._tasks.start(self._monitor.watch(model, loaded))
        metadata = loaded.metadata
        _logger.info(
            "model ready",
            extra={
                "model": model.id,
                "aliases": ",".join(model.aliases),
                "source": model.source,
                "revision": loaded.revision,
                "kind": metadata.kind.value,
                "device": loaded.device,
                "weight_type": loaded.weight_type,
                "dimensions": metadata.dimensions,
                "max_tokens": metadata.max_tokens,
                "batch_tokens": loaded.batch_tokens,
                "seconds": round(time.perf_counter() - began, 2),
            },
        )
        return ""

    async def drain(self) -> None:
        """Says NOT_SERVING, and goes on serving until whoever balances load has noticed."""
        await self._health.stop()
        await asyncio.sleep(self._settings.drain_delay_s)


class _Tasks:
    """Background tasks that end with the server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, coroutine: Any) -> None:
        """Runs a coroutine until the server ends."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises:
        StartError: It cannot start.
    """
    # Else every tokenizing thread has helpers on all cores, which the model needs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stopping = asyncio.Event()
    with _signals(stopping.set):
        try:
            server = Server(settings)
        except ValueError as error:
            raise StartError(str(error)) from None
        async with server:
            _logger.info("listening", extra={"address": server.address})
            await _until(stopping, server.load())
            _settle_memory()
            if not stopping.is_set():
                _logger.info("serving", extra={"address": server.address})
            await stopping.wait()
            _logger.info("stopping", extra={"grace_s": settings.shutdown_grace_s})
            await server.drain()
    _logger.info("stopped")


def _settle_memory() -> None:
    """Keeps the garbage collector away from what lives as long as the process.

    It would go through all modules and models again and again, for a seventh of the event
    loop's time under load. Calls leave hardly any cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _until(stopping: asyncio.Event, work: Any) -> None:
    """Does the work, unless it is time to stop before it is done."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for one in (task, stop):
            one.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


class _signals:  # noqa: N801 - used as a function
    """Calls back at the first SIGTERM or SIGINT, and leaves at once at the second."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._received = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _receive(self, number: int) -> None:
        if self._received:
            # Nothing that could still hang: no exit handlers, no threads to wait for.
            os._exit(128 + number)
        self._received = True
        self._stop()


def _listen(server: grpc.aio.Server, address: str) -> str:
    """Binds the address; returns it with the port that was taken.

    Raises:
        StartError: It cannot be bound.
    """
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise StartError(f"address {address}: cannot listen there; is another server running?")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _channel_arguments(settings: Settings) -> list[tuple[str, int]]:
    """Returns gRPC's own settings; a key that it does not know is ignored in silence."""
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_send_message_length", settings.max_response_bytes),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # Both alike, or a header between the two is refused at random.
        ("grpc.max_metadata_size", 16_384),
        ("grpc.absolute_max_metadata_size", 16_384),
        # Else a stream that is not read takes in far more than its window.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", 60_000),
        # Else a second server takes half of the first one's connections in silence.
        ("grpc.so_reuseport", 0),
    ]
