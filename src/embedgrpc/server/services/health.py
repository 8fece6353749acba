"""grpc.health.v1, driven by what models really do.

Now and then a model is asked to embed, or to score, a fixed text, through the same queue and the
same lane as every call; its answer must be the one that it gave when it was loaded. No answer in
time is forgiven as long as other batches get through.
"""

import asyncio
import logging
import time
from collections.abc import Callable
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
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ModelState, ServedModel

_logger = logging.getLogger(__name__)

EMBEDDING_SERVICE = "embedgrpc.v1.EmbeddingService"
RERANK_SERVICE = "embedgrpc.v1.RerankService"
MODEL_SERVICE = "embedgrpc.v1.ModelService"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_CANARY = "The quick brown fox jumps over the lazy dog."
# Two runs of one text may differ in the last bits; another model, or garbage, differs by more.
_DEVIATION_MAX = 1e-3
# Quantised activations have one scale a batch, so that a text's answer depends on what it is run
# with: a cosine of 0.96 was seen, which is a distance of 0.28. Another text is 1 away and more.
_QUANTIZED_DEVIATION_MAX = 0.5
_QUANTIZED = frozenset({"int4", "uint4", "int8", "uint8"})
_AWAY = "what runs the model is away"


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped library
    """Serves Check and Watch of grpc.health.v1.

    The package's own servicer takes the watchers' condition away when the first of several
    watchers leaves, and the others never hear of a change again.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._stopping = False
        self._ended = False

    async def set(self, service: str, *, serving: bool) -> None:
        """Sets the status of a service; without effect once the server is about to stop."""
        async with self._changed:
            status = _SERVING if serving and not self._stopping else _NOT_SERVING
            if self._statuses.get(service) != status:
                self._statuses[service] = status
                self._changed.notify_all()

    async def stop(self) -> None:
        """Sets everything to NOT_SERVING, for good."""
        self._stopping = True
        for service in list(self._statuses):
            await self.set(service, serving=False)

    async def end_watches(self) -> None:
        """Ends the streams of all watchers, once each has been told the last status."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Tells the status of a service now; NOT_FOUND when there is no such service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Tells the status of a service now and whenever it changes.

        Raises:
            ShuttingDownError: The server is about to stop.
        """
        told = None
        service = request.service
        while True:
            async with self._changed:
                while self._statuses.get(service, _UNKNOWN) == told:
                    if self._ended:
                        raise ShuttingDownError("the server is about to stop")
                    await self._changed.wait()
                told = self._statuses.get(service, _UNKNOWN)
            await write(context, health_pb2.HealthCheckResponse(status=told))


class Heartbeat:
    """Remembers when a model last ran a batch without failure; an observer of its scheduler."""

    def __init__(self) -> None:
        self._beaten_at: dict[str, float] = {}

    def batch_finished(self, report: BatchReport) -> None:
        """Takes the report of a batch."""
        if not report.error:
            self._beaten_at[report.model] = time.monotonic()

    def age_s(self, model: str) -> float:
        """Tells how long ago that was; infinity before the first."""
        return time.monotonic() - self._beaten_at.get(model, -float("inf"))


class HealthMonitor:
    """Keeps the health service, and the models' states, up to date.

    Args:
        catalog: The models.
        service: What is told.
        heartbeat: When models last ran a batch.
        readiness: Which models have to serve for a service to be SERVING.
        interval_s: Time between two canaries of a model.
        timeout_s: How long a canary may take.
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
    ) -> None:
        self._readiness = readiness
        self._catalog = catalog
        self._service = service
        self._heartbeat = heartbeat
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._expected: dict[str, FloatArray] = {}

    async def begin(self) -> None:
        """Says that the process lives and that nothing is served yet."""
        await self._service.set("", serving=True)
        await self._service.set(MODEL_SERVICE, serving=True)
        await self.publish()

    async def admit(self, model: ServedModel, loaded: LoadedModel) -> None:
        """Warms a model up with its canary, and serves it.

        Raises:
            EngineError: It does not answer.
        """
        self._expected[model.id] = await _run_canary(loaded, self._timeout_s)
        model.loaded = loaded
        model.state = ModelState.READY
        await self.publish()

    async def watch(self, model: ServedModel, loaded: LoadedModel) -> None:
        """Looks after a model for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self._check(model, loaded)

    async def note_availability(
        self, model: ServedModel, loaded: LoadedModel, *, available: bool
    ) -> None:
        """Takes that what runs a model went away, or came back: then its answers must be right."""
        if available:
            await self._check(model, loaded)
        else:
            await self._settle(model, _AWAY)

    async def publish(self) -> None:
        """Tells the health service what the models' states mean."""
        await self._publish_service(EMBEDDING_SERVICE, lambda loaded: loaded.embedder is not None)
        await self._publish_service(RERANK_SERVICE, lambda loaded: loaded.reranker is not None)

    async def _publish_service(self, service: str, can: Callable[[LoadedModel], bool]) -> None:
        """Tell what the models' states mean for a service and for each model's part in it."""
        counted = []
        for model in self._catalog:
            able = model.loaded is not None and can(model.loaded)
            serves = able and model.state is ModelState.READY
            if able or model.loaded is None:
                # What a model can do is known once it was loaded; until then it may be this.
                counted.append(serves)
            for name in (model.id, *model.aliases):
                await self._service.set(f"{service}/{name}", serving=serves)
        if self._readiness == "default":
            # The first model is the one that calls without a name get.
            counted = counted[:1]
        serving = any(counted) if self._readiness == "any" else all(counted)
        await self._service.set(service, serving=bool(counted) and serving)

    async def _check(self, model: ServedModel, loaded: LoadedModel) -> None:
        problem = await self._examine(model, loaded)
        # It may have gone while it was looked at.
        away = loaded.availability is not None and not loaded.availability.available
        await self._settle(model, _AWAY if away else problem)

    async def _settle(self, model: ServedModel, problem: str) -> None:
        """Sets what is known of a model now, and tells it where it is new."""
        healthy = ModelState.FAILED if problem else ModelState.READY
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
        """Runs the canary; returns what is wrong, or nothing."""
        try:
            answer = await _run_canary(loaded, self._timeout_s)
        except Exception as error:
            if not isinstance(error, EngineError):
                _logger.exception("canary failed", extra={"model": model.id})
                return type(error).__name__
            # Under load the canary may wait too long, while other batches get through.
            alive = self._heartbeat.age_s(model.id) < self._timeout_s
            return "" if alive and error.reason is Reason.DEADLINE_EXPIRED else error.reason.value
        expected = self._expected[model.id]
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
