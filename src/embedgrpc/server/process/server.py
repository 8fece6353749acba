"""The composition root: makes everything, serves, and takes it down in the reverse order."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.backends.base import BackendError, BackendUnreachableError, DeviceError
from embedgrpc.engine import errors
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.models.errors import ModelError, ModelUnavailableError
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.server.calls.call_sweeper import CallSweeper
from embedgrpc.server.calls.error_interceptor import ErrorInterceptor
from embedgrpc.server.calls.graceful_stop import ShutdownGate
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.connections.activity import ConnectionActivity
from embedgrpc.server.connections.keeper import ConnectionKeeper, Limits
from embedgrpc.server.connections.listening import (
    StartError,
    allow_descriptors,
    channel_arguments,
    listen,
)
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ModelState, ServedModel
from embedgrpc.server.loading.loading import OpenBackend, load, open_onnx, served_models
from embedgrpc.server.process.health_listener import HealthListener
from embedgrpc.server.services.embedding import EmbeddingService
from embedgrpc.server.services.health import HealthMonitor, HealthService, Heartbeat
from embedgrpc.server.services.models import ModelService
from embedgrpc.server.services.reflection import add_reflection
from embedgrpc.server.services.reranking import RerankService
from embedgrpc.server.settings.settings import FLUSH_S, Settings
from embedgrpc.server.telemetry.batch_totals import BatchTotals
from embedgrpc.server.telemetry.loop_lag import LoopLag
from embedgrpc.server.telemetry.metrics import Metrics, Reading, configure_metrics
from embedgrpc.server.telemetry.trace_export import TraceExport, configure_tracing
from embedgrpc.v1 import (
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
)

_logger = logging.getLogger(__name__)

# Between two attempts to load a model, at first; each time it is doubled, up to a limit.
_LOAD_WAIT_S = 1.0
# An attempt costs the Hub requests, and those who share it their rate limit.
_LOAD_WAIT_S_MAX = 60.0
# An attempt costs no more than a connection that is refused, and whoever starts the server waits.
_TRITON_LOAD_WAIT_S_MAX = 5.0


class Server:
    """A server and all that it owns.

    Use as an async context manager: it listens at once, and `load` brings the models in.

    Args:
        settings: The settings.
        open_backend: Makes what runs a model's graph.
        patience_s: How long `load` waits for another model once one is served.

    Attributes:
        address: Where it listens; with the port that was taken for port 0.
        health_address: Where it serves health alone; empty where it does not.
        catalog: Its models.
        open_calls: Keeps account of its calls.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_backend: OpenBackend = open_onnx,
        patience_s: float = 10,
    ) -> None:
        self.address = settings.address
        self.health_address = settings.health_address
        self.catalog = Catalog(served_models(settings))
        self.open_calls = OpenCalls(settings)
        self._settings = settings
        self._open_backend = open_backend
        self._patience_s = patience_s
        self._resources = AsyncExitStack()
        self._told_serving = False
        self._given_up = asyncio.Event()
        self._problems: dict[str, str] = {}
        self._health = HealthService()
        self._heartbeat = Heartbeat()
        self._open_streams = OpenStreams(max_age_s=settings.max_connection_age_s)
        self._totals = BatchTotals(self.catalog)
        self._lag = LoopLag()
        self._lag.warns = False
        self._readers: list[Callable[[], Iterable[Reading]]] = [
            self._totals.read,
            self._lag.read,
        ]
        self._observers: list[BatchObserver] = [self._heartbeat, self._totals]
        self._monitor = HealthMonitor(
            self.catalog,
            self._health,
            self._heartbeat,
            readiness=settings.readiness,
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
        settings = self._settings
        gate = ShutdownGate()
        limits = Limits(settings.max_connections, settings.max_connections_per_address)
        backstop = limits.backstop(settings.address)
        allow_descriptors(needed=limits.total, wanted=backstop)
        activity = ConnectionActivity(max_peers=2 * backstop)
        interceptors: list[Any] = [
            activity,
            ErrorInterceptor(self.open_calls, max_fields=settings.max_fields),
            gate,
        ]
        try:
            tracing = configure_tracing(version("embedgrpc"), os.environ)
            metrics = configure_metrics(version("embedgrpc"), os.environ, self._read)
        except ValueError as error:
            raise StartError(str(error), settings_are_wrong=True) from None
        exporting = [each for each in (metrics, tracing) if each]
        if exporting:
            resources.push_async_callback(flush, exporting)
        if tracing:
            interceptors.insert(0, tracing.interceptor())
            self._observers.append(tracing.batch_tracer())
        resources.callback(self._totals.log)
        await resources.enter_async_context(self._lag)
        models = self._models = ExitStack()
        # Off the event loop, which must go on to hear signals: a lane ends its batch first.
        resources.push_async_callback(asyncio.to_thread, models.close)
        self._tasks = await resources.enter_async_context(_Tasks())
        await self._monitor.begin()
        if settings.health_address:
            # It ends last: whoever asks is told of the stop.
            health = HealthListener(self._health, settings)
            await resources.enter_async_context(health)
            self.health_address = health.address
            self._keep(health.keeper)
            self._tasks.start(CallSweeper(health.open_calls).run())
        self._tasks.start(CallSweeper(self.open_calls).run())
        server = grpc.aio.server(
            interceptors=interceptors,
            options=channel_arguments(settings, max_connections=backstop),
        )
        self._add_services(server)
        self.address = listen(server, settings.address, unix_socket_mode=settings.unix_socket_mode)
        await server.start()
        self._keep(ConnectionKeeper("calls", self.address, activity.of, limits))
        resources.push_async_callback(gate.stop, server, settings.shutdown_grace_s)
        resources.callback(self._open_streams.drain)
        # Their streams never end by themselves, and the stop would wait out its grace for them.
        resources.push_async_callback(self._health.end_watches)

    def _keep(self, keeper: ConnectionKeeper) -> None:
        self._readers.append(keeper.read)
        self._tasks.start(keeper.run())

    def _read(self) -> Iterator[Reading]:
        """Tell what every counter stands at. From any thread."""
        for read in tuple(self._readers):
            yield from read()

    def _add_services(self, server: grpc.aio.Server) -> None:
        settings = self._settings
        embedding = EmbeddingService(self.catalog, settings, self._open_streams)
        rerank = RerankService(self.catalog, settings, self._open_streams)
        models = ModelService(self.catalog, max_inputs=settings.max_inputs)
        for add, servicer in (
            (embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server, embedding),
            (rerank_service_pb2_grpc.add_RerankServiceServicer_to_server, rerank),
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, models),
            (health_pb2_grpc.add_HealthServicer_to_server, self._health),
        ):
            add(servicer, server)
        if settings.reflection:
            add_reflection(server)

    async def load(self) -> None:
        """Load every model. One that fails does not take the others down.

        Raises:
            StartError: None can be loaded, or not all, where all are required.
        """
        failures = await self._load_all()
        lasting = [failure for failure in failures if failure and not failure.may_pass]
        fatal = lasting if len(lasting) == len(tuple(self.catalog)) else []
        if self._settings.require_all_models:
            fatal = [failure for failure in failures if failure]
        if fatal:
            raise StartError(
                "\n".join(failure.line for failure in fatal), settings_are_wrong=bool(lasting)
            )
        self._tell_serving()
        self._lag.warns = True

    async def _load_all(self) -> "list[_Failure | None]":
        """Load the models side by side; return the failures of those that were waited for.

        Once a model is served, the server goes on without those that take much longer: they are
        served when they come. Where all models are required, it waits for all of them.
        """
        loads = {asyncio.create_task(self._load_first(one)): one for one in self.catalog}
        pending = set(loads)
        try:
            while pending:
                hurries = not self._settings.require_all_models and any(
                    model.loaded for model in self.catalog
                )
                done, pending = await asyncio.wait(
                    pending,
                    timeout=self._patience_s if hurries else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
        except BaseException:
            for load in pending:
                load.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            raise
        for load in pending:
            _logger.warning("model is slow to load", extra={"model": loads[load].id})
            self._tasks.adopt(load)
        return [load.result() for load in loads if load not in pending]

    async def keep_serving(self) -> None:
        """Wait as long as there is a model, or hope for one.

        Raises:
            StartError: Each of those that were waited for turned out to be wrong.
        """
        await self._given_up.wait()
        raise StartError("\n".join(self._problems.values()), settings_are_wrong=True)

    def _tell_serving(self) -> None:
        """Log that calls are answered, once a model answers them."""
        ready = any(model.state is ModelState.READY for model in self.catalog)
        if ready and not self._told_serving:
            self._told_serving = True
            _logger.info("serving", extra={"address": self.address})

    async def _load_first(self, model: ServedModel) -> "_Failure | None":
        """Load a model; where that fails and may succeed later, go on in the background."""
        failure = await self._load_one(model)
        if failure and failure.may_pass and not self._settings.require_all_models:
            self._tasks.start(self._load_later(failure))
        return failure

    async def _load_one(self, model: ServedModel) -> "_Failure | None":
        """Load a model; return why that failed, if it did."""
        try:
            await self._bring_in(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            failure = _Failure(model, error)
            if not failure.may_pass:
                await self._give_up(failure)
            return failure
        return None

    async def _load_later(self, failure: "_Failure | None") -> None:
        """Load a model once what it comes from, or what runs it, is there."""
        told, wait_s = "", _LOAD_WAIT_S
        while failure and failure.may_pass:
            if told != (told := str(failure.error)):
                extra = {"model": failure.model.id, "problem": told}
                _logger.warning("model is waited for", extra=extra)
            # Not in the same moment as all others who wait for it.
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            wait_s = min(2 * wait_s, failure.wait_s_max)
            late = failure.model
            failure = await self._load_one(late)
            if failure is None:
                self._tell_serving()

    async def _give_up(self, failure: "_Failure") -> None:
        """Mark a model that cannot be loaded."""
        model, error = failure.model, failure.error
        model.state = ModelState.FAILED
        self._problems[model.id] = failure.line
        if len(self._problems) == len(tuple(self.catalog)):
            self._given_up.set()
        await self._monitor.publish()
        # What was not foreseen is logged with its stack.
        foreseen = isinstance(error, ModelError | DeviceError | BackendError | EngineError)
        _logger.error(
            "model failed to load",
            extra={"model": model.id, "problem": str(error)},
            exc_info=None if foreseen else error,
        )

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
        properties = loaded.properties
        _logger.info(
            "model ready",
            extra={
                "model": model.id,
                "aliases": ",".join(model.aliases),
                "source": model.source,
                "revision": loaded.revision,
                "kind": properties.kind.value,
                "device": loaded.device,
                "weight_type": loaded.weight_type,
                "weight_bytes": loaded.weight_bytes,
                "dimensions": properties.dimensions,
                "max_tokens": properties.max_tokens,
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
        await asyncio.sleep(self._settings.drain_time_s)


async def flush(exporting: Sequence[TraceExport | Metrics]) -> None:
    """Exports what is left, all at once: a collector that is gone costs its time only once.

    Args:
        exporting: What exports; each gets `FLUSH_S`.
    """
    await asyncio.gather(*(asyncio.to_thread(one.shutdown, FLUSH_S) for one in exporting))


@dataclass(frozen=True, slots=True)
class _Failure:
    """A model that could not be loaded."""

    model: ServedModel
    error: Exception

    @property
    def may_pass(self) -> bool:
        """Whether the model may be loaded later."""
        # A model that was loaded and does not answer in time may do so on a machine that is less
        # busy: others are loaded at the same time.
        return isinstance(
            self.error,
            ModelUnavailableError
            | BackendUnreachableError
            | errors.BackendUnavailableError
            | errors.DeadlineExpiredError
            | errors.OverloadedError,
        )

    @property
    def line(self) -> str:
        """Which model, and why, for people."""
        return f"{self.model.id}: {self.error}"

    @property
    def wait_s_max(self) -> float:
        """The longest wait between two attempts."""
        on_triton = is_triton_source(self.model.source)
        return _TRITON_LOAD_WAIT_S_MAX if on_triton else _LOAD_WAIT_S_MAX


class _Tasks:
    """Background tasks that end with the server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, coroutine: Any) -> None:
        """Runs a coroutine until the server ends."""
        self.adopt(asyncio.create_task(coroutine))

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a task when the server ends, unless it is done before."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _logger.error("a background task failed", exc_info=task.exception())
