"""Runs work on threads that the process does not wait for when it ends."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Run work on a new daemon thread and return its result.

    The process joins the threads of `asyncio.to_thread` when it ends, so a hanging download would
    keep it alive.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            _deliver(loop, lambda error=error: result.set_exception(error), result)  # type: ignore[misc]  # bound early
        else:
            _deliver(loop, lambda: result.set_result(value), result)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result


def _deliver(
    loop: asyncio.AbstractEventLoop, deliver: Callable[[], None], result: "asyncio.Future[T]"
) -> None:
    """Set a result on its event loop, unless the waiter was cancelled or the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: None if result.done() else deliver())
