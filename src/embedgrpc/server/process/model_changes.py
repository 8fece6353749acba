"""Changes which models a running server serves, without a failed call.

New models are loaded and warmed up beside those that serve. Then all change at once: new calls
find the new models, and those that have begun go on with the old ones, which are closed when the
last of them has ended.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.loading.catalog import Catalog, ModelState, ServedModel
from embedgrpc.server.loading.changes import ModelChange, ModelChangeError
from embedgrpc.server.loading.loading import LOAD_ERRORS
from embedgrpc.server.process.background_tasks import BackgroundTasks
from embedgrpc.server.process.model_drain import ModelDrain
from embedgrpc.server.process.running_models import RunningModels
from embedgrpc.server.services.health import HealthMonitor
from embedgrpc.server.settings.model_settings import ModelSettings, check_names

_logger = logging.getLogger(__name__)


class ModelChanges:
    """Changes the models, one change after the other.

    Args:
        catalog: The models.
        running: Loads and closes them.
        monitor: Publishes their health.
        drain: Waits for the calls of models.
        tasks: Where models are loaded and closed.
        tei_model: The name that must remain; empty for none.

    Attributes:
        loading: The models that are loaded beside the others now.
    """

    def __init__(
        self,
        catalog: Catalog,
        running: RunningModels,
        monitor: HealthMonitor,
        drain: ModelDrain,
        *,
        tasks: BackgroundTasks,
        tei_model: str,
    ) -> None:
        self.loading: list[ServedModel] = []
        self._catalog = catalog
        self._running = running
        self._monitor = monitor
        self._drain = drain
        self._tasks = tasks
        self._tei_model = tei_model
        # Held until the old models are closed: else changes in a row would fill the memory.
        self._changing = asyncio.Lock()

    async def change(
        self,
        *,
        wanted: Sequence[ModelSettings] | None = None,
        add: ModelSettings | None = None,
        remove: str = "",
        again: Collection[str] = (),
    ) -> ModelChange:
        """Serve other models; return when new calls find them.

        Goes on if the caller is cancelled.

        Args:
            wanted: All models to serve, the default first; None for those that are served.
            add: One more; it takes the place of a model with the same name.
            remove: The name of one to leave out.
            again: The names of models to load again, even if their settings are the same. Those
                that could not be loaded are loaded again in any case.

        Raises:
            ModelChangeError: It is not possible; nothing has changed.
        """
        changing = self._tasks.start(self._try_to_change(wanted, add, remove, again))
        change: ModelChange | ModelChangeError = await asyncio.shield(changing)
        if isinstance(change, ModelChangeError):
            raise change
        return change

    async def _try_to_change(self, *change: Any) -> ModelChange | ModelChangeError:
        """Return the failure: nobody may be left to catch it."""
        try:
            return await self._change(*change)
        except ModelChangeError as error:
            return error

    async def _change(
        self,
        wanted: Sequence[ModelSettings] | None,
        add: ModelSettings | None,
        remove: str,
        again: Collection[str],
    ) -> ModelChange:
        await self._changing.acquire()
        try:
            models = [one.settings for one in self._catalog] if wanted is None else list(wanted)
            models = _edit(models, add, remove)
            self._check(models)
            change, former = await self._swap(models, again)
        except BaseException:
            self._changing.release()
            raise
        closing = self._tasks.start(self._close(former))
        closing.add_done_callback(lambda _: self._changing.release())
        return ModelChange(**change, closed=closing)

    def _check(self, models: Sequence[ModelSettings]) -> None:
        if not models:
            raise ModelChangeError("the last model cannot be removed")
        try:
            check_names(models)
        except ValueError as error:
            raise ModelChangeError(str(error)) from None
        tei = self._tei_model
        if tei and not any(tei in (one.name, *one.aliases) for one in models):
            raise ModelChangeError(f"tei_model {tei} would name no model; a restart can change it")

    async def _swap(
        self, models: Sequence[ModelSettings], again: Collection[str]
    ) -> tuple[dict[str, tuple[str, ...]], list[ServedModel]]:
        """Load what is new, and let new calls find it.

        Returns:
            The names of what has changed, and the models to close.
        """
        former = {one.id: one for one in self._catalog}
        served: list[ServedModel] = []
        new: list[ServedModel] = []
        renamed: list[tuple[ServedModel, ModelSettings]] = []
        for settings in models:
            old = former.get(settings.name)
            if old is None or settings.name in again or not _is_kept(old, settings):
                new.append(ServedModel(settings))
                served.append(new[-1])
                continue
            served.append(old)
            if old.aliases != settings.aliases:
                renamed.append((old, settings))
        await self._load(new)
        for one, settings in renamed:
            one.settings = settings
        gone = [one for one in former.values() if one not in served]
        self._catalog.draining += tuple(gone)
        self._catalog.replace(served)
        await self._monitor.publish()
        added = [one.id for one in new if one.id not in former]
        kept = {one.id for one in served}
        return {
            "added": tuple(added),
            "replaced": tuple(one.id for one in new if one.id in former),
            "removed": tuple(one.id for one in gone if one.id not in kept),
            "renamed": tuple(one.id for one, _ in renamed),
        }, gone

    async def _load(self, models: Sequence[ServedModel]) -> None:
        """Load models one after the other, so that those that serve keep most of the cores.

        Raises:
            ModelChangeError: One cannot be loaded; those that were are closed again.
        """
        self.loading = list(models)
        try:
            for model in models:
                await self._running.open(model)
        except BaseException as error:
            for model in models:
                with contextlib.suppress(Exception):
                    await self._running.close(model)
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, (*LOAD_ERRORS, EngineError)):
                _logger.exception("model failed to load", extra={"model": model.id})
            raise ModelChangeError(f"{model.id}: {error}") from None
        finally:
            self.loading = []

    async def _close(self, models: Sequence[ServedModel]) -> None:
        """Close models when the calls that have found them have ended."""
        for model in models:
            began = time.monotonic()
            left = await self._drain.wait(model)
            await self._running.close(model)
            self._catalog.draining = tuple(
                one for one in self._catalog.draining if one is not model
            )
            _logger.log(
                logging.WARNING if left else logging.INFO,
                "model closed",
                extra={
                    "model": model.id,
                    "drain_s": round(time.monotonic() - began, 2),
                    "calls_cut_off": left,
                },
            )


def _is_kept(old: ServedModel, settings: ModelSettings) -> bool:
    """Return whether a model can go on with these settings."""
    same = old.settings.model_copy(update={"aliases": settings.aliases}) == settings
    return same and old.state is not ModelState.FAILED


def _edit(
    models: Iterable[ModelSettings], add: ModelSettings | None, remove: str
) -> list[ModelSettings]:
    """Return models with one more and without another."""
    edited = [one for one in models if not remove or one.name != remove]
    if add is None:
        return edited
    places = [place for place, one in enumerate(edited) if one.name == add.name]
    if places:
        edited[places[0]] = add
    else:
        edited.append(add)
    return edited
