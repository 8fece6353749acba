"""What went wrong in a run, wherever it was noticed."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENOUGH = 20
# The backend fails when it is told to, and the server logs that; and the clients, which work on
# the server's event loop, hold that up.
_EXPECTED_EVENTS = ("batch failed", "event loop held up", "overload began", "overload ended")
_EXPECTED_FAULT = "BackendFault"
_LOGGERS = ("embedgrpc", "asyncio", "grpc")
# Its lines are about calls, which their clients judge.
_ACCESS_LOGGER = "embedgrpc.access"


class Findings:
    """Collects problems. Safe to use from any thread.

    Attributes:
        problems: One line each, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._hangs = False

    @property
    def enough(self) -> bool:
        """Whether more would tell nothing new; after a hang everything waits for everything."""
        return self._hangs or len(self.problems) >= _ENOUGH

    def add(self, problem: str) -> None:
        """Record a problem."""
        if len(self.problems) < _ENOUGH:
            self.problems.append(problem)

    def add_hang(self, what: str) -> None:
        """Record that something does not end; for the first one, with all stacks."""
        self.add(what if self._hangs else f"{what}\n{_stacks()}")
        self._hangs = True

    @contextmanager
    def watching_process(self) -> Iterator[None]:
        """Record faults that reach no caller: dead threads, failed tasks, lines of the log."""
        watch = _LogWatch(self)
        loop = asyncio.get_running_loop()
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        before = [logger.propagate for logger in loggers]
        thread_hook, loop_handler = threading.excepthook, loop.get_exception_handler()
        threading.excepthook = self._thread_died
        loop.set_exception_handler(self._loop_complained)
        for logger in loggers:
            logger.addHandler(watch)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, propagated in zip(loggers, before, strict=True):
                logger.removeHandler(watch)
                logger.propagate = propagated
            loop.set_exception_handler(loop_handler)
            threading.excepthook = thread_hook

    def _thread_died(self, death: threading.ExceptHookArgs) -> None:
        name = death.thread.name if death.thread else "of nobody"
        stack = "".join(traceback.format_tb(death.exc_traceback))
        self.add(f"the thread {name} died of {death.exc_type.__name__}:\n{stack}")

    def _loop_complained(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        self.add(f"the event loop says: {context.get('message')}: {context.get('exception')!r}")


class _LogWatch(logging.Handler):
    """Records every warning except those of the backend's own failures."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.WARNING)
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        """Record a line of the log."""
        if record.name == _ACCESS_LOGGER:
            return
        message = record.getMessage()
        if message not in _EXPECTED_EVENTS and getattr(record, "error", "") != _EXPECTED_FAULT:
            more = getattr(record, "stack", "") or getattr(record, "problem", "")
            self._findings.add(f"the log says: {record.name}: {message} {more}")


def _stacks() -> str:
    """Return the stacks of every thread and task."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame)[-2:])}"
        for number, frame in sys._current_frames().items()
    ]
    parts += [f"task {task.get_name()}: {task.get_stack(limit=1)}" for task in asyncio.all_tasks()]
    return "\n".join(parts)
