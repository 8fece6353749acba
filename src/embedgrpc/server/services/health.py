"""grpc.health.v1, driven by what models answer.

From time to time each model runs a canary: a fixed text, through the same queue and lanes as every
call. Its row must be that of the first run, after loading. A canary that takes too long does not
count as long as other batches of the model succeed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedgrpc.engine.errors import EngineError, Reason, ShuttingDownError
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.server.calls.open_call import write
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ModelState, ServedModel

_logger = logging.getLogger(__name__)

EMBEDDING_SERVICE = "embedgrpc.v1.EmbeddingService"
RERANK_SERVICE = "embedgrpc.v1.RerankService"
CLASSIFY_SERVICE = "embedgrpc.v1.ClassifyService"
MODEL_SERVICE = "embedgrpc.v1.ModelService"
TOKENIZER_SERVICE = "embedgrpc.v1.TokenizerService"
# Those with a status for each model.
SERVICES = (EMBEDDING_SERVICE, RERANK_SERVICE, CLASSIFY_SERVICE, TOKENIZER_SERVICE)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_CANARY = "The quick brown fox jumps over the lazy dog."
# Two runs of one text may differ in the last bits; another model, or garbage, differs by more.
_DEVIATION_MAX = 1e-3
# Quantized activations have one scale per batch, so a row depends on its neighbours in the batch: a
# cosine of 0.96 was seen, which is a distance of 0.28. The row of another text is at least 1 away.
_QUANTIZED_DEVIATION_MAX = 0.5
_QUANTIZED = frozenset({"int4", "uint4", "int8", "uint8"})
_AWAY = "the backend cannot be reached"


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped library
    """Serves Check and Watch of grpc.health.v1.

    grpcio-health-checking's own servicer drops the condition that watchers wait for when the first
    of them leaves; the others are never notified again.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._stopping = False
        self._ended = False

    async def set(self, service: str, *, serving: bool) -> None:
        """Set the status of a service. Has no effect after `stop`."""
        async with self._changed:
            status = _SERVING if serving and not self._stopping else _NOT_SERVING
            if self._statuses.get(service) != status:
                self._statuses[service] = status
                self._changed.notify_all()

    def is_serving(self, service: str = "") -> bool:
        """Return whether a service is SERVING; the whole server by default."""
        return bool(self._statuses.get(service) == _SERVING)

    async def remove(self, service: str) -> None:
        """Forget a service; its watchers learn that it is unknown."""
        async with self._changed:
            if self._statuses.pop(service, None) is not None:
                self._changed.notify_all()

    async def stop(self) -> None:
        """Set every service to NOT_SERVING, until the process ends."""
        self._stopping = True
        for service in list(self._statuses):
            await self.set(service, serving=False)

    async def end_watches(self) -> None:
        """End the streams of all watchers, after each has received the last status."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service; NOT_FOUND when there is no such service."""
        service = request.service
        status = self._statuses.get(service)
        if status is None:
            known = list_names(sorted(filter(None, self._statuses), key=lambda one: "/" in one))
            await context.abort(
                StatusCode.NOT_FOUND, f"no service {show_name(service)}; there are: {known}"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Send the status of a service now and whenever it changes.

        Raises:
            ShuttingDownError: The server is about to stop.
        """
        sent = None
        service = request.service
        while True:
            async with self._changed:
                while self._statuses.get(service, _UNKNOWN) == sent:
                    if self._ended:
                        raise ShuttingDownError("the server is about to stop")
                    await self._changed.wait()
                sent = self._statuses.get(service, _UNKNOWN)
            await write(context, health_pb2.HealthCheckResponse(status=sent))


class Heartbeat:
    """The time of each model's last successful batch; an observer of the schedulers."""

    def __init__(self) -> None:
        self._beaten_at: dict[str, float] = {}

    def batch_finished(self, report: BatchReport) -> None:
        """Record the time of a batch, unless it failed."""
        if not report.error:
            self._beaten_at[report.model] = time.monotonic()

    def age_s(self, model: str) -> float:
        """Return the seconds since the model's last successful batch; infinity before the first."""
        return time.monotonic() - self._beaten_at.get(model, -float("inf"))


@dataclass(frozen=True, slots=True)
class FacadeHealth:
    """A service of another contract, for one model.

    Attributes:
        service: Its name.
        model: The name of the model.
        can: Whether the model has the service's task.
    """

    service: str
    model: str
    can: Callable[[LoadedModel], bool]


class HealthMonitor:
    """Keeps the health service and the states of the models up to date.

    Args:
        catalog: The models.
        service: The health service.
        heartbeat: The times of the models' last batches.
        readiness: Which models must serve for a service to be SERVING.
        interval_s: The time between two canaries of a model.
        timeout_s: The time limit of a canary.
        facades: Services for one model each.
        others: Further services for all models, and which models have the service's task.
    """

    def __init__(
        self,
        catalog: Catalog,
        service: HealthService,
        heartbeat: Heartbeat,
        *,
        readiness: Literal["default", "all", "any"],
        interval_s: float,
        timeout_s: float,
        facades: Sequence["FacadeHealth"] = (),
        others: Mapping[str, Callable[[LoadedModel], bool]] | None = None,
    ) -> None:
        self._facades = facades
        self._others = dict(others or {})
        self._readiness = readiness
        self._catalog = catalog
        self._service = service
        self._heartbeat = heartbeat
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._expected: dict[ServedModel, FloatArray] = {}
        # The services of single models.
        self._published: set[str] = set()
        self._publishing = asyncio.Lock()

    async def begin(self) -> None:
        """Report that the process is alive and that no model is served yet."""
        await self._service.set("", serving=True)
        await self._service.set(MODEL_SERVICE, serving=True)
        await self.publish()

    async def admit(self, model: ServedModel, loaded: LoadedModel) -> None:
        """Warm a model up with its canary, and serve it.

        Raises:
            EngineError: The canary failed.
        """
        self._expected[model] = await _run_canary(loaded, self._timeout_s)
        model.loaded = loaded
        model.state = ModelState.READY
        await self.publish()

    def forget(self, model: ServedModel) -> None:
        """Forget a model that is closed."""
        self._expected.pop(model, None)

    async def watch(self, model: ServedModel, loaded: LoadedModel) -> None:
        """Run a model's canary at intervals, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self._check(model, loaded)

    async def note_availability(
        self, model: ServedModel, loaded: LoadedModel, *, available: bool
    ) -> None:
        """Handle a backend that becomes unavailable, or available: the canary must pass first."""
        if available:
            await self._check(model, loaded)
        else:
            await self._settle(model, _AWAY)

    async def publish(self) -> None:
        """Set the status of every service from the states of the models."""
        # In turns: else one could bring back what another has removed.
        async with self._publishing:
            await self._publish()

    async def _publish(self) -> None:
        await self._publish_service(EMBEDDING_SERVICE, lambda loaded: loaded.embedder is not None)
        await self._publish_service(RERANK_SERVICE, lambda loaded: loaded.reranker is not None)
        await self._publish_service(CLASSIFY_SERVICE, lambda loaded: loaded.classifier is not None)
        await self._publish_service(TOKENIZER_SERVICE, lambda loaded: loaded.has_tokenizer)
        for service, can in self._others.items():
            await self._publish_service(service, can)
        for facade in self._facades:
            model = self._catalog.get(facade.model)
            loaded = model.loaded if model is not None else None
            serves = model is not None and model.state is ModelState.READY
            await self._service.set(
                facade.service, serving=serves and loaded is not None and facade.can(loaded)
            )

        names = [name for model in self._catalog for name in model.names]
        published = {
            f"{service}/{name}" for service in (*SERVICES, *self._others) for name in names
        }
        for service in self._published - published:
            await self._service.remove(service)
        self._published = published

    async def _publish_service(self, service: str, can: Callable[[LoadedModel], bool]) -> None:
        """Set the status of a service, and of each model in it."""
        counted = []
        for model in self._catalog:
            able = model.loaded is not None and can(model.loaded)
            serves = able and model.state is ModelState.READY
            if able or model.loaded is None:
                # Before a model is loaded its tasks are unknown: it may have this one.
                counted.append(serves)
            for name in (model.id, *model.aliases):
                await self._service.set(f"{service}/{name}", serving=serves)
        if self._readiness == "default":
            # Calls without a model name get the first model.
            counted = counted[:1]
        serving = any(counted) if self._readiness == "any" else all(counted)
        await self._service.set(service, serving=bool(counted) and serving)

    async def _check(self, model: ServedModel, loaded: LoadedModel) -> None:
        problem = await self._examine(model, loaded)
        # The backend may have become unavailable meanwhile.
        away = loaded.availability is not None and not loaded.availability.available
        await self._settle(model, _AWAY if away else problem)

    async def _settle(self, model: ServedModel, problem: str) -> None:
        """Set the state of a model; log and publish it if it changed."""
        healthy = ModelState.UNAVAILABLE if problem else ModelState.READY
        if healthy is not model.state:
            model.state = healthy
            level = logging.ERROR if problem else logging.INFO
            _logger.log(
                level,
                "model unhealthy" if problem else "model healthy again",
                extra={"model": model.id, "problem": problem},
            )
            await self.publish()

    async def _examine(self, model: ServedModel, loaded: LoadedModel) -> str:
        """Run the canary; return the problem, or an empty string."""
        try:
            answer = await _run_canary(loaded, self._timeout_s)
        except Exception as error:
            if not isinstance(error, EngineError):
                _logger.exception("canary failed", extra={"model": model.id})
                return type(error).__name__
            # Under load the canary may wait too long while other batches succeed.
            alive = self._heartbeat.age_s(model.id) < self._timeout_s
            return "" if alive and error.reason is Reason.DEADLINE_EXPIRED else error.reason.value
        expected = self._expected[model]
        if answer.shape != expected.shape:
            return f"the canary has shape {answer.shape}; it had {expected.shape}"
        deviation = float(np.linalg.norm(answer - expected))
        quantized = loaded.weight_type in _QUANTIZED
        tolerance = _QUANTIZED_DEVIATION_MAX if quantized else _DEVIATION_MAX
        limit = tolerance * max(float(np.linalg.norm(expected)), 1.0)
        return f"the canary deviates by {deviation:.3g}" if deviation > limit else ""


async def _run_canary(loaded: LoadedModel, timeout_s: float) -> FloatArray:
    call = Call(work_class=WorkClass.INTERACTIVE, deadline=time.monotonic() + timeout_s)
    return await loaded.probe(_CANARY, call)
