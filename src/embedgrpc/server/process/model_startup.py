"""Loads the models side by side at start, and retries those that may be loaded later."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from embedgrpc.backends.base import BackendError, BackendUnreachableError, DeviceError
from embedgrpc.engine import errors
from embedgrpc.engine.errors import EngineError
from embedgrpc.models.errors import ModelError, ModelUnavailableError
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.loading.catalog import Catalog, ModelState, ServedModel
from embedgrpc.server.process.background_tasks import BackgroundTasks
from embedgrpc.server.process.running_models import RunningModels
from embedgrpc.server.services.health import HealthMonitor
from embedgrpc.server.settings.settings import Settings

_logger = logging.getLogger(__name__)

# The first wait between two attempts to load a model; it doubles up to a limit.
_RETRY_WAIT_S = 1.0
# An attempt makes requests to the Hub, which limits the rate of an address.
_RETRY_WAIT_S_MAX = 60.0
# An attempt costs no more than a refused connection, and a user waits for the server to start.
_TRITON_RETRY_WAIT_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A model that could not be loaded."""

    model: ServedModel
    error: Exception

    @property
    def may_pass(self) -> bool:
        """Whether a later attempt may succeed."""
        # Where other models are being loaded, even the check of a loaded model may time out.
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
        """The model and the reason, for people."""
        return f"{self.model.id}: {self.error}"

    @property
    def wait_s_max(self) -> float:
        """The longest wait between two attempts."""
        on_triton = is_triton_source(self.model.source)
        return _TRITON_RETRY_WAIT_S_MAX if on_triton else _RETRY_WAIT_S_MAX


class ModelStartup:
    """Brings the models of a catalog into service.

    Args:
        catalog: The models.
        settings: The settings.
        running: Loads them.
        monitor: Learns of those that cannot be loaded.
        tasks: Where retries run.
        patience_s: How long to wait for another model once one is served.
        on_ready: Called once, when the first model is served.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        running: RunningModels,
        monitor: HealthMonitor,
        tasks: BackgroundTasks,
        *,
        patience_s: float,
        on_ready: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._running = running
        self._monitor = monitor
        self._tasks = tasks
        self._patience_s = patience_s
        self._on_ready: Callable[[], None] | None = on_ready
        self._all_failed = asyncio.Event()

    async def load(self) -> None:
        """Load every model. One that fails does not prevent the others from being served.

        Raises:
            StartError: None can be loaded, or not all, where all are required.
        """
        failures = await self._load_all()
        lasting = [failure for failure in failures if failure and not failure.may_pass]
        fatal = lasting if len(lasting) == len(tuple(self._catalog)) else []
        if self._settings.require_all_models:
            fatal = [failure for failure in failures if failure]
        if fatal:
            raise StartError(
                "\n".join(failure.line for failure in fatal), settings_are_wrong=bool(lasting)
            )
        self.report_ready()

    async def wait_until_hopeless(self) -> None:
        """Wait as long as a model is served, or may be loaded later.

        Raises:
            StartError: Every model turned out to be wrong.
        """
        await self._all_failed.wait()
        lines = (f"{model.id}: {model.problem}" for model in self._catalog)
        raise StartError("\n".join(lines), settings_are_wrong=True)

    def report_ready(self) -> None:
        """Report once that a model is served."""
        if self._on_ready and any(model.state is ModelState.READY for model in self._catalog):
            self._on_ready()
            self._on_ready = None

    async def _load_all(self) -> "list[_Failure | None]":
        """Load the models side by side; return the failures of those it waited for.

        Once a model is served, the server goes on without those that take much longer: each is
        served when it is loaded. Where all models are required, it waits for all of them.
        """
        loads = {asyncio.create_task(self._load_or_retry(one)): one for one in self._catalog}
        pending = set(loads)
        try:
            while pending:
                hurries = not self._settings.require_all_models and any(
                    model.loaded for model in self._catalog
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
            self._running.follow(loads[load], load)
        return [load.result() for load in loads if load not in pending]

    async def _load_or_retry(self, model: ServedModel) -> "_Failure | None":
        """Load a model; if that fails and may succeed later, retry in the background."""
        failure = await self._attempt(model)
        if failure and failure.may_pass and not self._settings.require_all_models:
            self._running.follow(model, self._tasks.start(self._retry(failure)))
        return failure

    async def _attempt(self, model: ServedModel) -> "_Failure | None":
        """Load a model; return the failure if there is one."""
        try:
            await self._running.open(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            failure = _Failure(model, error)
            if not failure.may_pass:
                await self._give_up(failure)
            return failure
        return None

    async def _retry(self, failure: "_Failure | None") -> None:
        """Load a model once its source, or its backend, is available."""
        logged, wait_s = "", _RETRY_WAIT_S
        while failure and failure.may_pass:
            if logged != (logged := str(failure.error)):
                extra = {"model": failure.model.id, "problem": logged}
                _logger.warning("model is waited for", extra=extra)
            # Not at the same moment as all other servers that wait for it.
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            wait_s = min(2 * wait_s, failure.wait_s_max)
            failure = await self._attempt(failure.model)
        if failure is None:
            self.report_ready()

    async def _give_up(self, failure: "_Failure") -> None:
        """Mark a model that cannot be loaded."""
        model, error = failure.model, failure.error
        model.state, model.problem = ModelState.FAILED, str(error)
        if all(one.state is ModelState.FAILED for one in self._catalog):
            self._all_failed.set()
        await self._monitor.publish()
        # An unexpected error is logged with its stack.
        expected = isinstance(error, ModelError | DeviceError | BackendError | EngineError)
        _logger.error(
            "model failed to load",
            extra={"model": model.id, "problem": str(error)},
            exc_info=None if expected else error,
        )
