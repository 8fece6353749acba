"""What signals do: SIGTERM and SIGINT stop the server, SIGHUP reloads its settings."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handled_signals(stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first signal that stops, and end the process at the second.

    The system sends SIGHUP, too, when the terminal of the process is closed. Then nobody can see or
    stop the server any more, so that is a stop; `nohup` prevents it.

    Args:
        stop: Begins the stop.
        reload: Begins a reload.
    """
    stops_on_hang_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    had_terminal = _has_terminal()
    received = False

    def receive(number: int) -> None:
        nonlocal received
        if received:
            # Without exit handlers and without waiting for threads: those could hang.
            os._exit(128 + number)
        received = True
        stop()

    def receive_hang_up() -> None:
        if had_terminal and not _has_terminal():
            if stops_on_hang_up:
                receive(signal.SIGHUP)
        elif not received:
            reload()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number)
    loop.add_signal_handler(signal.SIGHUP, receive_hang_up)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _has_terminal() -> bool:
    """Return whether the process has a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
