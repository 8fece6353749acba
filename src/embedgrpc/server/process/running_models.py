"""Loads models one by one, and closes each when it is no longer served."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.machine.malloc import trim_memory
from embedgrpc.server.loading.catalog import LoadedModel, ModelState, ServedModel
from embedgrpc.server.loading.loading import OpenBackend, load
from embedgrpc.server.process.background_tasks import BackgroundTasks
from embedgrpc.server.services.health import HealthMonitor
from embedgrpc.server.settings.settings import Settings

_logger = logging.getLogger(__name__)


class RunningModels:
    """The models whose threads run, whether they are in the catalog or not.

    Args:
        settings: The settings.
        monitor: Checks each model before it is served, and from then on.
        tasks: Where these checks run.
        open_backend: Makes what runs a model's graph.
        observers: Get the reports of all batches.
        on_close: Called with a model just before it is closed.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: HealthMonitor,
        tasks: BackgroundTasks,
        *,
        open_backend: OpenBackend,
        observers: Sequence[BatchObserver],
        on_close: Callable[[ServedModel], None],
    ) -> None:
        self._settings = settings
        self._monitor = monitor
        self._tasks = tasks
        self._open_backend = open_backend
        self._observers = observers
        self._on_close = on_close
        self._resources: dict[ServedModel, ExitStack] = {}
        self._watches: dict[ServedModel, asyncio.Task[None]] = {}
        self._attempts: dict[ServedModel, asyncio.Task[object]] = {}

    async def open(self, model: ServedModel) -> None:
        """Load a model, check it, and mark it as ready.

        Raises:
            Exception: It cannot be loaded; everything that was opened for it is closed.
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
        model.load_s = time.perf_counter() - began
        self._resources[model] = resources
        self._watches[model] = self._tasks.start(self._monitor.watch(model, loaded))
        if loaded.availability is not None:
            loaded.availability.watch(partial(self._note_availability, model, loaded))
        _log_ready(model, loaded)

    def follow(self, model: ServedModel, attempt: "asyncio.Task[object]") -> None:
        """Cancel an attempt to load a model when the model is closed."""
        self._attempts[model] = attempt

        def forget(_: object) -> None:
            if self._attempts.get(model) is attempt:
                del self._attempts[model]

        attempt.add_done_callback(forget)

    async def close(self, model: ServedModel) -> None:
        """Close a model that is no longer called, and return its memory to the system."""
        for task in (self._attempts.pop(model, None), self._watches.pop(model, None)):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._on_close(model)
        self._monitor.forget(model)
        model.state, model.loaded = ModelState.UNAVAILABLE, None
        resources = self._resources.pop(model, None)
        if resources is None:
            return
        # Off the event loop: it waits until the lanes have ended their batches.
        await asyncio.to_thread(resources.close)
        # The stack holds what it has closed.
        del resources
        await asyncio.to_thread(trim_memory)

    def close_all(self) -> None:
        """Close all models, the last first. Blocks until their lanes have ended their batches."""
        while self._resources:
            _, resources = self._resources.popitem()
            resources.close()

    def _note_availability(self, model: ServedModel, loaded: LoadedModel, available: bool) -> None:  # noqa: FBT001 - as watchers are called
        if model not in self._resources:
            return
        # Watchers are called on the loop: the backend's calls run there.
        self._tasks.start(self._monitor.note_availability(model, loaded, available=available))


def _log_ready(model: ServedModel, loaded: LoadedModel) -> None:
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
            "dimensions": properties.vector_dimensions,
            "max_tokens": properties.max_tokens,
            "batch_tokens": loaded.scheduler.budget.tokens,
            "seconds": round(model.load_s, 2),
        },
    )
