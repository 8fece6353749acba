"""Ctrl-C and SIGTERM: the first lets the running units finish, the second ends the process."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal came.

    Attributes:
        requested: Whether one came.
    """

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[Stop]:
    """Call `stop` at the first signal, raise KeyboardInterrupt at the second.

    Signals reach only the main thread: in others, nothing is caught.
    """
    state = Stop()

    def handle(_: int, __: FrameType | None) -> None:
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True
        # Not by way of the file: the signal may have come while it was written to.
        start = b"\r\x1b[K" if sys.stderr.isatty() else b""
        os.write(
            sys.stderr.fileno(),
            start + b"embedgrpc-client: finishing the running units; Ctrl-C again ends at once\n",
        )
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    former: dict[int, Any] = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield state
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
