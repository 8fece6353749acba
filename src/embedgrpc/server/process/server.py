"""The composition root: builds everything, serves, and tears it down in reverse order."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.server.calls.access_log import AccessLog
from embedgrpc.server.calls.call_sweeper import CallSweeper
from embedgrpc.server.calls.error_interceptor import ErrorInterceptor
from embedgrpc.server.calls.graceful_stop import ShutdownGate
from embedgrpc.server.calls.open_call import OpenCall
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
from embedgrpc.server.identity.authenticator import Authenticator
from embedgrpc.server.identity.watched_file import FileError
from embedgrpc.server.kserve.signature import SERVICE as KSERVE_SERVICE
from embedgrpc.server.kserve.signature import can_infer
from embedgrpc.server.kserve.statistics import InferenceStatistics
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.loading.loading import OpenBackend, open_onnx, served_models
from embedgrpc.server.process.background_tasks import BackgroundTasks
from embedgrpc.server.process.call_methods import call_methods, proofs_of
from embedgrpc.server.process.health_listener import HealthListener
from embedgrpc.server.process.model_changes import ModelChanges
from embedgrpc.server.process.model_drain import ModelDrain
from embedgrpc.server.process.model_startup import ModelStartup
from embedgrpc.server.process.reloading import ReloadableFiles, Reloading
from embedgrpc.server.process.running_models import RunningModels
from embedgrpc.server.rpc.handlers import InterceptorChain
from embedgrpc.server.services.classification import ClassifyService
from embedgrpc.server.services.embedding import EmbeddingService
from embedgrpc.server.services.health import HealthMonitor, HealthService, Heartbeat
from embedgrpc.server.services.models import ModelService
from embedgrpc.server.services.reflection import add_reflection
from embedgrpc.server.services.reranking import RerankService
from embedgrpc.server.services.tokenizer import TokenizerService
from embedgrpc.server.settings.settings import FLUSH_S, Settings
from embedgrpc.server.tei.health import health_of as tei_health
from embedgrpc.server.telemetry.batch_totals import BatchTotals
from embedgrpc.server.telemetry.call_figures import CallFigures
from embedgrpc.server.telemetry.call_record import note_model
from embedgrpc.server.telemetry.http_tracing import HttpTracer
from embedgrpc.server.telemetry.loop_lag import LoopLag
from embedgrpc.server.telemetry.metrics import Figures
from embedgrpc.server.telemetry.metrics_export import MetricsExport, configure_metrics
from embedgrpc.server.telemetry.model_figures import ModelFigures
from embedgrpc.server.telemetry.overload_log import OverloadLog
from embedgrpc.server.telemetry.process_figures import ProcessFigures
from embedgrpc.server.telemetry.trace_export import TraceExport, configure_tracing
from embedgrpc.server.telemetry.work_times import WorkTimes
from embedgrpc.v1 import (
    classify_service_pb2_grpc,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)

if TYPE_CHECKING:
    from embedgrpc.server.connections.tls import Tls
    from embedgrpc.server.http.listener import HttpListener
    from embedgrpc.server.process.http_ports import HttpPorts
    from embedgrpc.server.telemetry.other_names import OtherNames

_logger = logging.getLogger(__name__)

# From the end of a start to the first warning about the event loop.
_SETTLE_S = 1.0


class Server:
    """A server and everything it owns.

    Use as an async context manager: it listens at once, and `load` brings in the models.

    Args:
        settings: The settings.
        open_backend: Makes what runs a model's graph.
        patience_s: How long `load` waits for another model once one is served.
        on_serving: Called once, when the first model is served.

    Attributes:
        address: Where it listens; with the port that was chosen for port 0.
        http_address: Where it serves HTTP; may be empty.
        health_address: Where it serves only health; may be empty.
        metrics_address: Where it serves only metrics; may be empty.
        catalog: Its models.
        open_calls: Its open calls.
        figures: What it counts.
        models: Changes which models it serves.
        reloading: Applies changed settings.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_backend: OpenBackend = open_onnx,
        patience_s: float = 10,
        on_serving: "Callable[[Server], None] | None" = None,
    ) -> None:
        self.address = settings.address
        self.http_address = settings.http_address
        self.health_address = settings.health_address
        self.metrics_address = settings.metrics_address
        self.catalog = Catalog(served_models(settings))
        self.catalog.on_found = note_model
        self.open_calls = OpenCalls(settings)
        self._settings = settings
        self._on_serving = on_serving
        self._resources = AsyncExitStack()
        self._http: HttpListener | None = None
        self._tls: Tls | None = None
        self._tasks = BackgroundTasks()
        self._health = HealthService()
        self._heartbeat = Heartbeat()
        self._open_streams = OpenStreams(max_age_s=settings.max_connection_age_s)
        self._totals = BatchTotals(self.catalog)
        self._lag = LoopLag()
        self._lag.warns = False
        self.figures = Figures()
        self._times = WorkTimes(self.catalog)
        self._process = ProcessFigures(self.catalog)
        self._other_names: Sequence[OtherNames] = ()
        for figures in (
            self._totals,
            self._times,
            ModelFigures(self.catalog),
            self._process,
            self._lag,
            self.open_calls,
            self.open_calls.rates,
        ):
            self.figures.add(figures.read)
        self._observers: list[BatchObserver] = [self._heartbeat, self._totals, self._times]
        self._count_calls()
        tei = tei_health(settings.tei_model) if settings.tei_model else ()
        kserve = {KSERVE_SERVICE: can_infer} if settings.kserve else {}
        self._other_services = [*(one.service for one in tei), *kserve]
        if settings.admin:
            self._other_services.append("embedgrpc.v1.AdminService")
        self._statistics = InferenceStatistics(one.id for one in self.catalog)
        if settings.kserve:
            self._observers.append(self._statistics)
        self._monitor = HealthMonitor(
            self.catalog,
            self._health,
            self._heartbeat,
            readiness=settings.readiness,
            interval_s=settings.health_interval_s,
            timeout_s=settings.health_timeout_s,
            facades=tei,
            others=kserve,
        )
        self._running = RunningModels(
            settings,
            self._monitor,
            self._tasks,
            open_backend=open_backend,
            observers=self._observers,
            on_close=self._totals.close,
        )
        self._startup = ModelStartup(
            self.catalog,
            settings,
            self._running,
            self._monitor,
            self._tasks,
            patience_s=patience_s,
            on_ready=self._report_serving,
        )
        self.models = ModelChanges(
            self.catalog,
            self._running,
            self._monitor,
            ModelDrain(self.open_calls, settings),
            tasks=self._tasks,
            tei_model=settings.tei_model,
        )
        self._files: list[ReloadableFiles] = []
        self.reloading = Reloading(settings, self.models, self._files, self._tasks)
        self.reloading.on_reload = self._follow
        self._access_log = AccessLog(settings.access_log, caller_metadata=settings.caller_metadata)
        self.open_calls.observers.append(self._access_log.observe)
        self.figures.add(self.reloading.reading)

    def _follow(self, changed: Settings) -> None:
        """Follow settings that have changed."""
        self.open_calls.change_rates(changed)
        self._access_log.mode = changed.access_log
        self._startup.report_ready()

    def _count_calls(self) -> None:
        settings = self._settings
        methods = tuple(call_methods(settings))
        calls = CallFigures(
            methods,
            self.catalog,
            proofs=proofs_of(settings),
            has_authentication=settings.identifies_callers,
        )
        self.figures.add(calls.read)
        self.open_calls.observers.append(lambda call: calls.add(call.record, call.caller.proof))
        if settings.metrics_names == ("embedgrpc",):
            return
        # Imported only where they are used: they cost time and memory.
        from embedgrpc.server.process.metrics_names import open_other_names  # noqa: PLC0415 - above

        self._other_names = open_other_names(
            settings, methods, self.catalog, self._process.gpu_memory
        )
        for names in self._other_names:
            self.open_calls.observers.append(partial(_add_record, names))
            self._observers.append(names)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            await self._start(resources)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    def _report_serving(self) -> None:
        _logger.info("serving", extra={"address": self.address})
        if self._on_serving:
            self._on_serving(self)

    async def _start(self, resources: AsyncExitStack) -> None:
        settings = self._settings
        gate = ShutdownGate()
        limits = Limits(settings.max_connections, settings.max_connections_per_address)
        backstop = limits.backstop(settings.address)
        _allow_connections(settings, limits)
        activity = ConnectionActivity(max_peers=2 * backstop)
        errors = ErrorInterceptor(self.open_calls, max_fields=settings.max_fields)
        interceptors: list[grpc.aio.ServerInterceptor] = [
            InterceptorChain([activity, errors, gate], gate=gate)
        ]
        try:
            tracing = configure_tracing(version("embedgrpc"), os.environ)
            metrics = configure_metrics(version("embedgrpc"), os.environ, self.figures)
        except ValueError as error:
            raise StartError(str(error), settings_are_wrong=True) from None
        await self._open_tls()
        exporting = [each for each in (metrics, tracing) if each]
        if exporting:
            resources.push_async_callback(flush, exporting)
        if tracing:
            interceptors.insert(0, tracing.interceptor())
            self._observers.append(tracing.batch_tracer())
        resources.callback(self._totals.log)
        await resources.enter_async_context(self._lag)
        # Off the event loop, which must still receive signals while lanes end their batches.
        resources.push_async_callback(asyncio.to_thread, self._running.close_all)
        await resources.enter_async_context(self._tasks)
        resources.callback(self._access_log.close)
        self._tasks.start(OverloadLog(self.catalog).run())
        await self._identify_callers()
        await self._monitor.begin()
        if settings.health_address:
            # It ends last, so that probes still learn of the stop.
            health = HealthListener(self._health, settings)
            await resources.enter_async_context(health)
            self.health_address = health.address
            self._keep(health.keeper)
            self._tasks.start(CallSweeper(health.open_calls).run())
        if settings.metrics_address:
            # Likewise, so that the figures of the last calls are still scraped.
            await self._serve_metrics(resources)
        self._tasks.start(CallSweeper(self.open_calls).run())
        server = grpc.aio.server(
            interceptors=interceptors,
            options=channel_arguments(settings, max_connections=backstop),
        )
        self._add_services(server)
        self.address = listen(
            server,
            settings.address,
            unix_socket_mode=settings.unix_socket_mode,
            credentials=self._tls.grpc_credentials() if self._tls else None,
        )
        if self._tls is not None:
            self._tasks.start(self._tls.watch())
        await server.start()
        self._keep(ConnectionKeeper("calls", self.address, activity.of, limits))
        resources.push_async_callback(self._stop_calls, gate, server)
        if settings.http_address:
            await self._serve_http(limits, tracing.http_tracer() if tracing else None)
        resources.callback(self._open_streams.drain)
        # Health watches never end by themselves: the stop would wait out its grace for them.
        resources.push_async_callback(self._health.end_watches)

    async def _open_tls(self) -> None:
        if self._settings.tls_certificate_file:
            self._tls = await asyncio.to_thread(_open_tls, self._settings)
            self.figures.add(self._tls.read)
            self._files.append(self._tls)

    async def _identify_callers(self) -> None:
        """Require credentials, where some are configured."""
        if not self._settings.identifies_callers:
            return
        authenticator = await asyncio.to_thread(_open_authenticator, self._settings, self.catalog)
        self.open_calls.authenticator = authenticator
        self.figures.add(authenticator.read)
        self._files.append(authenticator)
        self._tasks.start(authenticator.watch())

    async def _stop_calls(self, gate: ShutdownGate, server: grpc.aio.Server) -> None:
        """End all calls, those of both ports within the same grace."""
        stops = [gate.stop(server, self._settings.shutdown_grace_s)]
        if self._http is not None:
            stops.append(self._http.stop())
        await asyncio.gather(*stops)

    async def _serve_http(self, limits: Limits, tracer: HttpTracer | None) -> None:
        http = self._http_ports().calls(self.open_calls, limits=limits, tracer=tracer)
        await http.start()
        self._http, self.http_address = http, http.address
        self._keep(http.keeper)
        self._tasks.start(http.reap())

    async def _serve_metrics(self, resources: AsyncExitStack) -> None:
        calls = OpenCalls(self._settings)
        calls.authenticator = self.open_calls.authenticator
        calls.observers.append(self._access_log.observe)
        metrics = self._http_ports().metrics(calls)
        await metrics.start()
        resources.push_async_callback(metrics.close)
        self.metrics_address = metrics.address
        self._keep(metrics.keeper)
        self._tasks.start(metrics.reap())
        self._tasks.start(CallSweeper(calls).run())

    def _http_ports(self) -> "HttpPorts":
        # Imported only where it is used: it costs time and memory.
        from embedgrpc.server.process.http_ports import HttpPorts  # noqa: PLC0415 - see above

        return HttpPorts(
            self.catalog,
            self._settings,
            self._health,
            figures=self.figures,
            other_names=self._other_names,
            tls=self._tls,
        )

    def _keep(self, keeper: ConnectionKeeper) -> None:
        self.figures.add(keeper.read)
        self._tasks.start(keeper.run())

    def _add_services(self, server: grpc.aio.Server) -> None:
        settings = self._settings
        embedding = EmbeddingService(self.catalog, settings, self._open_streams)
        rerank = RerankService(self.catalog, settings, self._open_streams)
        classify = ClassifyService(self.catalog, settings, self._open_streams)
        models = ModelService(self.catalog, settings)
        tokenizer = TokenizerService(self.catalog, settings)
        for add_servicer, servicer in (
            (embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server, embedding),
            (rerank_service_pb2_grpc.add_RerankServiceServicer_to_server, rerank),
            (classify_service_pb2_grpc.add_ClassifyServiceServicer_to_server, classify),
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, models),
            (tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server, tokenizer),
            (health_pb2_grpc.add_HealthServicer_to_server, self._health),
        ):
            add_servicer(servicer, server)
        if settings.tei_model:
            # Imported only where it is used: it costs time and memory.
            from embedgrpc.server.tei.services import add_tei  # noqa: PLC0415 - see above

            add_tei(server, self.catalog, settings, self._open_streams)
        if settings.kserve:
            # Likewise.
            from embedgrpc.server.kserve.services import add_kserve  # noqa: PLC0415 - see above

            add_kserve(server, self.catalog, settings, self._health, self._statistics)
        if settings.admin:
            # Likewise.
            from embedgrpc.server.services.admin import AdminService  # noqa: PLC0415 - see above
            from embedgrpc.v1 import admin_service_pb2_grpc  # noqa: PLC0415 - see above

            admin = AdminService(
                self.catalog, self.models, self.open_calls, lambda: self.reloading.last
            )
            add: Any = admin_service_pb2_grpc.add_AdminServiceServicer_to_server
            add(admin, server)
        if settings.reflection:
            add_reflection(server, others=self._other_services)

    async def load(self) -> None:
        """Load every model. One that fails does not prevent the others from being served.

        Raises:
            StartError: None can be loaded, or not all, where all are required.
        """
        await self._startup.load()
        self.reloading.allow()

    async def keep_serving(self) -> None:
        """Wait as long as a model is served, or may be loaded later.

        Raises:
            StartError: Every model turned out to be wrong.
        """
        # While models load, their libraries hold the interpreter lock; then comes a garbage
        # collection.
        await asyncio.sleep(_SETTLE_S)
        self._lag.warns = True
        await self._startup.wait_until_hopeless()

    async def drain(self) -> None:
        """Report NOT_SERVING, and keep serving until load balancers have noticed."""
        await self._health.stop()
        if self._http is not None:
            self._http.drain()
        await asyncio.sleep(self._settings.drain_time_s)


def _allow_connections(settings: Settings, limits: Limits) -> None:
    """Let the process open as many files as it may have connections."""
    addresses = [one for one in (settings.address, settings.http_address) if one]
    allow_descriptors(
        needed=limits.total * len(addresses),
        wanted=sum(map(limits.backstop, addresses)),
    )


def _open_tls(settings: Settings) -> "Tls":
    """Read the certificates.

    Raises:
        StartError: A file cannot be used.
    """
    # Imported only where it is used: it costs time and memory.
    from embedgrpc.server.connections.certificates import (  # noqa: PLC0415 - see above
        CertificateError,
    )
    from embedgrpc.server.connections.tls import Tls  # noqa: PLC0415 - see above

    try:
        return Tls(settings)
    except CertificateError as error:
        raise StartError(str(error), settings_are_wrong=True) from None


def _open_authenticator(settings: Settings, catalog: Catalog) -> Authenticator:
    """Read the files of keys and callers.

    Raises:
        StartError: A file cannot be used.
    """
    try:
        return Authenticator(
            settings, model_names=lambda: [name for one in tuple(catalog) for name in one.names]
        )
    except FileError as error:
        raise StartError(str(error), settings_are_wrong=True) from None


async def flush(exporting: Sequence[TraceExport | MetricsExport]) -> None:
    """Export what is left, all at once: an unreachable collector costs its timeout only once."""
    await asyncio.gather(*(asyncio.to_thread(one.shutdown, FLUSH_S) for one in exporting))


def _add_record(names: "OtherNames", call: OpenCall) -> None:
    names.add(call.record)
