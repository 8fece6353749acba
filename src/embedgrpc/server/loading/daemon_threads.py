"""Work that the end of the process does not wait for."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Runs work on a thread of its own.

    Unlike `asyncio.to_thread`, whose threads are joined when the process ends: a download that
    hangs would keep it.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            _tell(loop, lambda error=error: result.set_exception(error), result)  # type: ignore[misc]  # bound early
        else:
            _tell(loop, lambda: result.set_result(value), result)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result


def _tell(
    loop: asyncio.AbstractEventLoop, tell: Callable[[], None], result: "asyncio.Future[T]"
) -> None:
    """Tells a result on its loop, if anybody still waits there."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: None if result.done() else tell())
