"""A progress bar on standard error, without a library."""

import sys
import time
from typing import Final, TextIO

_WIDTH: Final = 30
_REDRAW_S: Final = 0.1
# Where nobody watches, a line in the log is enough once in a while.
_LINE_S: Final = 10.0


class ProgressBar:
    """Shows how many items are done: a bar on a terminal, a line every ten seconds elsewhere.

    Args:
        total: The number of items; None if it is unknown.
        unit: What the items are, such as "texts".
        file: Where to write; None for standard error.
    """

    def __init__(self, total: int | None, unit: str, file: TextIO | None = None) -> None:
        self._total = total
        self._unit = unit
        self._file = sys.stderr if file is None else file
        self._is_terminal = self._file.isatty()
        self._count = 0
        self._began = time.monotonic()
        self._next_draw = self._began + (0 if self._is_terminal else _LINE_S)

    def add(self, count: int) -> None:
        """Add items that are done."""
        self._count += count
        now = time.monotonic()
        if now >= self._next_draw:
            self._next_draw = now + (_REDRAW_S if self._is_terminal else _LINE_S)
            self._draw(now, end="" if self._is_terminal else "\n")

    def end(self) -> None:
        """Show the last state, and end the line."""
        self._draw(time.monotonic(), end="\n")

    def _draw(self, now: float, end: str) -> None:
        elapsed_s = max(now - self._began, 1e-9)
        rate = self._count / elapsed_s
        text = f"{self._count} {self._unit}"
        if self._total is not None:
            share = self._count / self._total if self._total else 1.0
            filled = int(share * _WIDTH)
            bar = "#" * filled + "-" * (_WIDTH - filled)
            left = _clock((self._total - self._count) / rate) if self._count else "?"
            text = f"{share:4.0%} [{bar}] {self._count}/{self._total} {self._unit}, {left} left"
        start = "\r\x1b[K" if self._is_terminal else ""
        self._file.write(f"{start}{text}, {rate:.4g}/s, {_clock(elapsed_s)}{end}")
        self._file.flush()


def _clock(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours where there are any."""
    minutes, left_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left_s:02}" if hours else f"{minutes:02}:{left_s:02}"
