"""Background tasks that end with the server."""

import asyncio
import logging
from contextvars import Context
from typing import Any, Self

_logger = logging.getLogger(__name__)


class BackgroundTasks:
    """Tasks that run until they are done, or until this context manager exits."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Run a coroutine in the background; log the exception if it raises one.

        What the running call is does not matter to it: it may outlast the call.
        """
        task = asyncio.create_task(coroutine, context=Context())
        self.adopt(task)
        return task

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a task at the exit, unless it is done; log its exception."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _logger.error("a background task failed", exc_info=task.exception())
