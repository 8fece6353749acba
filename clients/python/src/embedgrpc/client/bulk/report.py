"""Progress on standard error: a bar on a terminal, else a line every ten seconds."""

import os
import sys
import threading
import time
from typing import Final, TextIO

_BAR_INTERVAL_S: Final = 0.2
_LINE_INTERVAL_S: Final = 10.0
_BAR_CHARACTERS: Final = 24
_COLUMNS: Final = 80  # of a terminal that does not say
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


class Report:
    """The progress of a run, written by a thread of its own from start to close.

    Args:
        rows: The number of all rows.

    Attributes:
        rows_done: Rows with a result.
        failed: Rows that failed.
        tokens: The tokens of this run.
    """

    def __init__(self, rows: int) -> None:
        self.rows_done = 0
        self.failed = 0
        self.tokens = 0
        self._rows = rows
        self._rows_before = 0
        self._stream: TextIO = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started_at = time.monotonic()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, rows_done: int, failed: int) -> None:
        """Start to count: earlier runs wrote so many rows, of which so many failed."""
        self.rows_done = self._rows_before = rows_done
        self.failed = failed
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=self._show, name="embedgrpc-report", daemon=True)
        self._thread.start()

    def tell(self, message: str) -> None:
        """Write a line of its own."""
        with self._lock:
            self._clear()
            self._stream.write(f"embedgrpc-client: {' '.join(message.split())}\n")
            self._stream.flush()

    def close(self) -> None:
        """Write the last state, and end."""
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        with self._lock:
            self._write()
            if self._is_terminal:
                self._stream.write("\n")
            self._stream.flush()

    def state(self) -> str:
        """Return the progress as text."""
        elapsed_s = max(time.monotonic() - self._started_at, 1e-9)
        rows_s = (self.rows_done - self._rows_before) / elapsed_s
        share = self.rows_done / self._rows if self._rows else 1.0
        text = (
            f"{share:4.0%} {self.rows_done:,}/{self._rows:,} rows,"
            f" {rows_s:,.0f} rows/s, {self.tokens / elapsed_s:,.0f} tokens/s,"
            f" {self.failed:,} failed"
        )
        if rows_s and self.rows_done < self._rows:
            text += f", {_duration((self._rows - self.rows_done) / rows_s)} left"
        return text

    def _show(self) -> None:
        interval_s = _BAR_INTERVAL_S if self._is_terminal else _LINE_INTERVAL_S
        while not self._closed.wait(interval_s):
            with self._lock:
                self._write()

    def _write(self) -> None:
        if not self._is_terminal:
            self._stream.write(f"embedgrpc-client: {self.state()}\n")
            self._stream.flush()
            return
        self._clear()
        self._stream.write(self._frame())
        self._stream.flush()

    def _frame(self) -> str:
        """Return the bar and the state as one line of the terminal; the bar gives way."""
        columns = os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        state = self.state()
        width = min(_BAR_CHARACTERS, columns - len(state) - len("[] ") - 1)
        if width <= 0:
            return state[: columns - 1]
        full = int(width * self.rows_done / self._rows)
        return f"[{'#' * full}{'.' * (width - full)}] {state}"

    def _clear(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")


def _duration(seconds: float) -> str:
    hours, rest_s = divmod(round(seconds), _HOUR_S)
    minutes, seconds_left = divmod(rest_s, _MINUTE_S)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds_left:02} s" if minutes else f"{seconds_left} s"
