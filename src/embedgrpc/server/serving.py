"""The composition root: makes everything, serves, and takes it down in the reverse order."""

import asyncio
import logging
import os
import random
import time
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.backends.base import BackendError, BackendUnavailableError, DeviceError
from embedgrpc.engine import errors
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.reports import BatchObserver
from embedgrpc.models.errors import ModelError
from embedgrpc.models.triton_source import is_triton_source
from embedgrpc.server import telemetry
from embedgrpc.server.calibrating import calibrate_all
from embedgrpc.server.catalog import Catalog, LoadedModel, ModelState, ServedModel
from embedgrpc.server.closing import Doorkeeper
from embedgrpc.server.draining import Draining
from embedgrpc.server.embedding import EmbeddingService
from embedgrpc.server.guard import GuardInterceptor
from embedgrpc.server.health import HealthMonitor, HealthService, Heartbeat
from embedgrpc.server.listening import StartError, channel_arguments, listen
from embedgrpc.server.listing import ModelService
from embedgrpc.server.loading import OpenBackend, load, open_onnx, served_models
from embedgrpc.server.metrics import configure_metrics
from embedgrpc.server.open_calls import OpenCalls
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

# Between two attempts to load a model whose server is not there: one costs no more than a
# connection that is refused, and whoever starts the server waits for the next.
_LOAD_WAIT_S = 1.0


class Server:
    """A server and all that it owns.

    Use as an async context manager: it listens at once, and `load` brings the models in.

    Args:
        settings: The settings.
        open_backend: Makes what runs a model's graph.

    Attributes:
        address: Where it listens; with the port that was taken for port 0.
        catalog: Its models.
        open_calls: Keeps account of its calls.
    """

    def __init__(self, settings: Settings, *, open_backend: OpenBackend = open_onnx) -> None:
        self.address = settings.address
        self.catalog = Catalog(served_models(settings))
        self.open_calls = OpenCalls(settings)
        self._settings = settings
        self._open_backend = open_backend
        self._resources = AsyncExitStack()
        self._health = HealthService()
        self._heartbeat = Heartbeat()
        self._draining = Draining()
        self._totals = BatchTotals(self.catalog)
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
        interceptors: list[Any] = [door, GuardInterceptor(self.open_calls)]
        try:
            tracing = telemetry.configure(version("embedgrpc"), os.environ)
            metrics = configure_metrics(version("embedgrpc"), os.environ, self._totals.read)
        except ValueError as error:
            raise StartError(str(error), settings_are_wrong=True) from None
        if metrics:
            resources.push_async_callback(asyncio.to_thread, metrics.shutdown)
        if tracing:
            resources.push_async_callback(asyncio.to_thread, tracing.shutdown)
            interceptors.insert(1, tracing.interceptor())
            self._observers.append(tracing.batch_tracer())
        resources.callback(self._totals.log)
        models = self._models = ExitStack()
        # Off the event loop, which must go on to hear signals: a lane ends its batch first.
        resources.push_async_callback(asyncio.to_thread, models.close)
        self._tasks = await resources.enter_async_context(_Tasks())
        self._tasks.start(self.open_calls.watch())
        server = grpc.aio.server(
            interceptors=interceptors, options=channel_arguments(self._settings)
        )
        self._add_services(server)
        await self._monitor.begin()
        self.address = listen(server, self._settings.address)
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
        problems = await asyncio.gather(*(self._load_one(model) for model in self.catalog))
        if all(problems):
            raise StartError("\n".join(problems), settings_are_wrong=True)
        if self._settings.calibration_s:
            self._tasks.start(calibrate_all(self.catalog, self._settings))

    async def _load_one(self, model: ServedModel) -> str:
        """Loads a model; returns what is wrong with it, or nothing."""
        try:
            await self._bring_in(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            if not _may_come(model, error):
                return await self._give_up(model, error)
            self._tasks.start(self._load_later(model, error))
        return ""

    async def _load_later(self, model: ServedModel, error: Exception) -> None:
        """Loads a model once what runs it is there."""
        told = ""
        while _may_come(model, error):
            if told != (told := str(error)):
                _logger.warning("model is waited for", extra={"model": model.id, "problem": told})
            # Not in the same moment as all others who wait for it.
            await asyncio.sleep(_LOAD_WAIT_S * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                return await self._bring_in(model)
            except Exception as next_error:  # noqa: BLE001 - see above
                error = next_error
        await self._give_up(model, error)
        return None

    async def _give_up(self, model: ServedModel, error: Exception) -> str:
        """Marks a model that cannot be loaded; returns what is wrong with it."""
        model.state = ModelState.FAILED
        await self._monitor.publish()
        # What was not foreseen is logged with its stack.
        foreseen = isinstance(error, ModelError | DeviceError | BackendError | EngineError)
        _logger.error(
            "model failed to load",
            extra={"model": model.id, "problem": str(error)},
            exc_info=None if foreseen else error,
        )
        return f"{model.id}: {error}"

    async def _bring_in(self, model: ServedModel) -> None:
        """Loads a model, and serves it.

        Raises:
            Exception: It cannot be loaded; nothing of it is left.
        """
        began = time.perf_counter()
        resources = ExitStack()
        try:
            loaded = await load(
                model,
                self._settings,
                observers=self._observers,
                resources=resources,
                open_backend=self._open_backend,
            )
            await self._monitor.admit(model, loaded)
        except BaseException:
            await asyncio.to_thread(resources.close)
            raise
        self._models.push(resources)
        self._tasks.start(self._monitor.watch(model, loaded))
        if loaded.availability is not None:
            loaded.availability.watch(partial(self._note_availability, model, loaded))
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
                "weight_bytes": loaded.weight_bytes,
                "dimensions": metadata.dimensions,
                "max_tokens": metadata.max_tokens,
                "batch_tokens": loaded.scheduler.budget.tokens,
                "seconds": round(time.perf_counter() - began, 2),
            },
        )

    def _note_availability(self, model: ServedModel, loaded: LoadedModel, available: bool) -> None:  # noqa: FBT001 - as watchers are called
        # Watchers are called on the loop: the backend's calls run there.
        self._tasks.start(self._monitor.note_availability(model, loaded, available=available))

    async def drain(self) -> None:
        """Says NOT_SERVING, and goes on serving until whoever balances load has noticed."""
        await self._health.stop()
        await asyncio.sleep(self._settings.drain_delay_s)


def _may_come(model: ServedModel, error: Exception) -> bool:
    """Tells whether a model may be loaded later that could not be now."""
    away = isinstance(
        error,
        BackendUnavailableError
        | errors.BackendUnavailableError
        | errors.DeadlineExpiredError
        | errors.OverloadedError,
    )
    return away and is_triton_source(model.source)


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
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _logger.error("a background task failed", exc_info=task.exception())
