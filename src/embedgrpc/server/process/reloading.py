"""Applies changed settings while the server runs: all of them, or none.

Everything is checked first: the settings, the files of keys and certificates, and the new models,
which are loaded beside those that serve. Only then does anything change.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from embedgrpc.server.loading.changes import LastReload, ModelChangeError
from embedgrpc.server.process.background_tasks import BackgroundTasks
from embedgrpc.server.process.model_changes import ModelChanges
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.model_settings import default_model
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

# The settings that a running server follows.
AT_RUN_TIME: Final = frozenset(
    {
        "models",
        "log_level",
        "access_log",
        "requests_per_s",
        "request_burst",
        "tokens_per_min",
        "token_burst",
        "max_calls_per_caller",
    }
)


class ReloadableFiles(Protocol):
    """Files that are read again, such as keys."""

    def check(self) -> str:
        """Return what is wrong with the files now; empty if they can be used. Blocks."""
        ...

    def reload(self) -> None:
        """Use the files if they have changed and can be used. Blocks."""
        ...


class Reloading:
    """Reloads when it is asked to, one time after the other.

    Args:
        settings: The settings that the server started with.
        models: Changes the models.
        files: What is read again.
        tasks: Where reloads run.

    Attributes:
        read: Reads the settings again; None where nobody can.
        last: How the last reload ended; None before the first.
        on_reload: Called with the new settings after a reload that went well.
    """

    def __init__(
        self,
        settings: Settings,
        models: ModelChanges,
        files: list[ReloadableFiles],
        tasks: BackgroundTasks,
    ) -> None:
        self.read: Callable[[], Settings] | None = None
        self.last: LastReload | None = None
        self.on_reload: Callable[[Settings], None] = lambda _: None
        self._settings = settings
        self._models = models
        self._files = files
        self._tasks = tasks
        self._outcomes = {"reloaded": 0, "refused": 0}
        self._ready = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._wanted = False

    def allow(self) -> None:
        """Begin to reload: the start is over."""
        self._ready.set()

    def request(self) -> None:
        """Reload soon. Several requests while a reload runs are one."""
        _logger.info("reload requested", extra={"running": self._running is not None})
        self._wanted = True
        if self._running is None:
            self._running = self._tasks.start(self._run())

    def reading(self) -> Iterator[Reading]:
        """Return how often settings were reloaded. From any thread."""
        for outcome, count in self._outcomes.items():
            yield Reading("embedgrpc.reloads", count, {"outcome": outcome})

    async def _run(self) -> None:
        try:
            await self._ready.wait()
            while self._wanted:
                self._wanted = False
                await self._reload()
        finally:
            self._running = None

    async def _reload(self) -> None:
        began = time.monotonic()
        try:
            fresh = await self._read()
            change = await self._models.change(wanted=fresh.models or (default_model(),))
        except (SettingsError, ModelChangeError) as error:
            self._outcomes["refused"] += 1
            self.last = LastReload(time.time(), problem=str(error))
            _logger.error(  # noqa: TRY400 - it is expected
                "reload refused; nothing has changed", extra={"problem": str(error)}
            )
            return
        for one in self._files:
            await asyncio.to_thread(one.reload)
        needs_restart = tuple(_needs_restart(self._settings, fresh))
        self.on_reload(fresh)
        self._outcomes["reloaded"] += 1
        self.last = LastReload(time.time(), needs_restart=needs_restart)
        _logger.info(
            "reloaded",
            extra={**change.log_fields(), "seconds": round(time.monotonic() - began, 2)},
        )
        if needs_restart:
            _logger.warning(
                "settings have changed that need a restart",
                extra={"settings": ",".join(needs_restart)},
            )
        logging.getLogger().setLevel(fresh.log_level.upper())

    async def _read(self) -> Settings:
        """Read the settings and check the files that they name.

        Raises:
            SettingsError: Something cannot be used.
        """
        fresh = await asyncio.to_thread(self.read) if self.read is not None else self._settings
        for one in self._files:
            if problem := await asyncio.to_thread(one.check):
                raise SettingsError(problem)
        return fresh


def _needs_restart(old: Settings, fresh: Settings) -> Iterator[str]:
    """Return the settings that differ from those that the server started with."""
    for name in Settings.model_fields:
        if name not in AT_RUN_TIME and getattr(old, name) != getattr(fresh, name):
            yield name
