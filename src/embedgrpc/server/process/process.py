"""The life cycle of the process: it serves until a signal stops it."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from embedgrpc.machine.memory import available_memory_bytes
from embedgrpc.server.connections.listening import StartError, is_dual_stack
from embedgrpc.server.loading.loading import count_threads
from embedgrpc.server.process.pid_file import PidFileError, pid_file
from embedgrpc.server.process.server import Server
from embedgrpc.server.process.service_manager import tell_service_manager
from embedgrpc.server.process.shutdown_deadline import ShutdownDeadline
from embedgrpc.server.process.signals import handled_signals
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.settings.worst_case import memory_warning

_logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0005


async def serve(
    settings: Settings,
    *,
    read: Callable[[], Settings] | None = None,
    on_serving: Callable[[Server], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the process at once. SIGHUP reloads.

    Args:
        settings: The settings.
        read: Reads the settings again, for a reload. Called off the event loop.
        on_serving: Called once, when the first model is served.

    Raises:
        StartError: It cannot start.
    """
    # Else every tokenizing thread starts helpers on all cores, which the model needs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Else a lane that has run a batch waits up to 5 ms for the interpreter lock, which the event
    # loop holds, and the model's cores are idle meanwhile.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    stopping = asyncio.Event()
    deadline = ShutdownDeadline(settings.shutdown_timeout_s)

    def stop() -> None:
        deadline.begin()
        stopping.set()

    def serving(server: Server) -> None:
        tell_service_manager("READY=1", os.environ)
        if on_serving is not None:
            on_serving(server)

    server = Server(settings, on_serving=serving)
    server.reloading.read = read
    with _held_pid_file(settings), handled_signals(stop, server.reloading.request):
        async with server:
            start = {"version": version("embedgrpc"), "threads": count_threads(settings)}
            where = {
                "address": server.address,
                "http_address": server.http_address,
                "health_address": server.health_address,
                "metrics_address": server.metrics_address,
            }
            where = {name: address for name, address in where.items() if address}
            _logger.info("listening", extra={**where, **start, **_limits(settings)})
            if warning := memory_warning(settings, available_memory_bytes()):
                _logger.warning(warning)
            if warning := exposure_warning(settings):
                _logger.warning(warning)
            if is_dual_stack(settings.address):
                _logger.info("listening on all IPv6 addresses, too")
            await _until(stopping, server.load())
            settle_memory()
            await _until(stopping, server.keep_serving())
            _logger.info(
                "stopping",
                extra={"drain_s": settings.drain_time_s, "grace_s": settings.shutdown_grace_s},
            )
            tell_service_manager("STOPPING=1", os.environ)
            await server.drain()
    _logger.info("stopped")


def _limits(settings: Settings) -> dict[str, float]:
    """Return the limits that decide what the server takes on, for the log."""
    return {
        name: getattr(settings, name)
        for name in (
            "max_connections",
            "max_calls",
            "max_inputs",
            "max_queue_s",
            "max_queued_tokens",
            "max_request_bytes",
            "max_held_request_bytes",
            "max_held_answer_bytes",
        )
    }


@contextmanager
def _held_pid_file(settings: Settings) -> Iterator[None]:
    """Hold the file with the number of the process, if the settings name one.

    Raises:
        StartError: It cannot be used.
    """
    with ExitStack() as held:
        if settings.pid_file:
            try:
                held.enter_context(pid_file(Path(settings.pid_file).expanduser()))
            except (PidFileError, RuntimeError) as error:
                raise StartError(str(error), settings_are_wrong=True) from None
        yield


def exposure_warning(settings: Settings) -> str:
    """Return what to do where strangers may call; empty where they may not."""
    if settings.identifies_callers or settings.is_local or settings.tls_client_ca_file:
        return ""
    return (
        "anybody who can reach this server can call it: set api_keys_file, jwt_issuer or"
        " tls_client_ca_file to require credentials"
    )


def settle_memory() -> None:
    """Exclude what lives as long as the process from garbage collection.

    Else the collector would traverse all modules and models again and again, for a seventh of the
    event loop's time under load. Calls leave hardly any cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _until(stopping: asyncio.Event, work: Any) -> None:
    """Run some work until it is done, or until the stop."""
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
