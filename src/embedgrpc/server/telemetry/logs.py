"""Log lines: readable on a terminal, JSON elsewhere. Never texts, never vectors.

A thread writes them, so that logging never blocks the event loop, even if nothing reads the lines.
"""

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from embedgrpc.models.progress import reporter
from embedgrpc.server.telemetry.running_call import RUNNING

# The attributes of every record; any other was given as `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

# About ten thousand lines that wait to be written.
_WAITING_BYTES_MAX = 4 * 1024 * 1024
# How long the first of many lines waits for others.
_PATIENCE_S = 0.05
# How long a process that ends waits for its last lines to be written.
_FLUSH_S = 1.0

# These libraries log every request of a download, and its URL may hold a signature.
_VERBOSE = ("httpx2", "httpcore2", "filelock")

_GRPC = "grpc._cython.cygrpc"
# gRPC logs these as errors with a stack, but clients cause them: by leaving before they are
# answered, or by sending metadata or a path that is not UTF-8, which the line would show.
_CAUSED_BY_CLIENTS = (
    "ExecuteBatchError raised in core",
    "Failed sending error status from server",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
)

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_ERASE_LINE = b"\r\x1b[K"
# Shorter work has no progress bar.
_BAR_AFTER_S = 2.0
_BAR_WIDTH = 30
_BAR_INTERVAL_S = 0.1


def is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    """Return whether a record of gRPC has a cause other than a client."""
    message = record.getMessage()
    return not any(one in message for one in _CAUSED_BY_CLIENTS)


def configure(level: str, log_format: Literal["auto", "human", "json"]) -> bool:
    """Send log lines to stderr, and on a terminal progress bars.

    Args:
        level: The least severe level that is written, in lower case.
        log_format: "auto" is human on a terminal.

    Returns:
        Whether the lines are JSON.
    """
    is_terminal = sys.stderr.isatty()
    human = log_format == "human" or (log_format == "auto" and is_terminal)
    handler = BackgroundHandler(sys.stderr.fileno())
    # NO_COLOR: see no-color.org.
    coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    handler.setFormatter(HumanFormatter(coloured=coloured) if human else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # On the logger, which keeps one filter however often it is added.
    logging.getLogger(_GRPC).addFilter(is_no_fault_of_a_client)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.WARNING)
    reporter.display = ProgressBar(handler).show if human and is_terminal else None
    return not human


def configure_for_terminal(level: str) -> None:
    """Send log lines and progress bars to stderr if it is a terminal; else write neither."""
    if sys.stderr.isatty():
        configure(level, "human")


class BackgroundHandler(logging.Handler):
    """Writes lines from a thread, and drops lines when too many wait.

    Args:
        descriptor: The file to write to.
        bytes_max: The most bytes that wait to be written.
    """

    def __init__(self, descriptor: int, *, bytes_max: int = _WAITING_BYTES_MAX) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        # Whether all lines that wait are some of many: then they may wait a little longer.
        self._patient = False
        # The line below all others: the one to show, and the one that is shown.
        self._status = self._shown = b""
        self._changed = threading.Condition()
        self._busy = False
        # A daemon, because a write blocks for good if nothing reads.
        self._writer = threading.Thread(target=self._write_all, name="logs", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record to be written."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - as in every handler, a line that fails must not raise
            self.handleError(record)
            return
        with self._changed:
            self._put(line)
            self._patient = False
            self._changed.notify_all()

    def write(self, line: bytes) -> None:
        """Queue one of many lines, which are written some at a time: that is cheaper."""
        with self._changed:
            if not self._waiting:
                self._patient = True
                self._changed.notify_all()
            self._put(line)

    def _put(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > self._bytes_max:
            self._dropped += 1
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)

    def show_status(self, text: str) -> None:
        """Keep a text on the line below all log lines of a terminal; empty removes it."""
        with self._changed:
            self._status = text.encode("utf-8", "backslashreplace")
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, or until nothing seems to read it."""
        with self._changed:
            self._patient = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._has_work() and not self._busy, _FLUSH_S)

    def _has_work(self) -> bool:
        return bool(self._waiting) or self._status != self._shown

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._patient:
                    self._changed.wait_for(lambda: not self._patient, _PATIENCE_S)
                    self._patient = False
                lines, dropped = b"".join(self._waiting), self._dropped
                erase = _ERASE_LINE if self._shown else b""
                status = self._shown = self._status
                self._waiting.clear()
                self._waiting_bytes = self._dropped = 0
                self._busy = True
            if dropped:
                lines += f"{self.format(_report_dropped(dropped))}\n".encode()
            self._write(erase + lines + status)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # The reader is gone, or the disk is full: serving goes on.
                return


class Journal:
    """Writes many lines of one kind, whatever the level of the log: cheaply where that is JSON.

    Args:
        name: The name of the logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._encode: Callable[[dict[str, Any]], bytes] | None = None
        self._second = -1
        self._clock = ""

    def write(self, event: str, level: int, fields: dict[str, Any]) -> None:
        """Write a line; its fields are texts, numbers and mappings of these."""
        handlers = logging.getLogger().handlers
        only = handlers[0] if len(handlers) == 1 and not self._logger.handlers else None
        if isinstance(only, BackgroundHandler) and isinstance(only.formatter, JsonFormatter):
            only.write(self._line(event, level, fields))
            return
        line = logging.LogRecord(self._logger.name, level, "", 0, event, None, None)
        line.__dict__.update(fields)
        self._logger.handle(line)

    def _line(self, event: str, level: int, fields: dict[str, Any]) -> bytes:
        """Return what `JsonFormatter` would write, but for blanks."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if self._encode is None:
            # Imported only where it is used: it costs time and memory.
            import msgspec  # noqa: PLC0415 - see above

            self._encode = msgspec.json.Encoder().encode
        head = {
            "time": f"{self._clock}.{int((now - second) * 1000):03}+00:00",
            "level": logging.getLevelName(level).lower(),
            "logger": self._logger.name,
            "event": event,
        }
        return self._encode(head | fields) + b"\n"


class ProgressBar:
    """Shows the progress of one task at a time on the last line of a terminal."""

    def __init__(self, handler: BackgroundHandler) -> None:
        self._handler = handler
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._drawn_s = 0.0

    def show(self, what: str, done: int, total: int) -> None:
        """Draw the bar of a task that has run for two seconds; remove it when the task ends."""
        now = time.monotonic()
        with self._lock:
            began = self._began.setdefault(what, now)
            if done >= total:
                del self._began[what]
                self._handler.show_status("")
            elif now - began > _BAR_AFTER_S and now - self._drawn_s > _BAR_INTERVAL_S:
                self._drawn_s = now
                bar = ("#" * (_BAR_WIDTH * done // total)).ljust(_BAR_WIDTH, ".")
                sizes = f"{_readable_size(done)} of {_readable_size(total)}"
                self._handler.show_status(f"{what} [{bar}] {100 * done // total}% {sizes}")


def _report_dropped(count: int) -> logging.LogRecord:
    message = "dropped log lines that were not read in time"
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (), None)
    record.__dict__["lines"] = count
    return record


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the trace of the running call."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        call = RUNNING.get()
        if call is not None and "trace_id" not in line:
            line |= call.trace_fields()
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """Time, level, event and fields: sizes and durations with units, empty fields left out."""

    def __init__(self, *, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = dict(_fields(record))
        stack = fields.pop("stack", "")
        shown = (_readable_field(*field) for field in fields.items() if field[1] not in ("", None))
        details = "".join(f" {name}={value}" for name, value in shown)
        level = record.levelname.lower()
        if self._coloured:
            clock = f"{_DIM}{clock}{_RESET}"
            details = details and f"{_DIM}{details}{_RESET}"
            line = (
                f"{clock} {_COLOURS.get(level, '')}{level:7}{_RESET} {record.getMessage()}{details}"
            )
        else:
            line = f"{clock} {level:7} {record.getMessage()}{details}"
        if record.exc_info:
            stack = self.formatException(record.exc_info)
        return f"{line}\n{stack}" if stack else line


def _readable_field(name: str, value: object) -> tuple[str, str]:
    """Return a field with its unit at the value: `weight_bytes` 512 becomes `weight` 512B."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        text = str(value)
        is_plain = text.isprintable() and " " not in text and '"' not in text
        return name, text if is_plain else json.dumps(text, ensure_ascii=False)
    stem, _, unit = name.rpartition("_")
    match unit:
        case "bytes":
            return stem or "size", _readable_size(value)
        case "seconds":
            return stem or "duration", f"{value:g}s"
        case "s" | "ms" | "us" if stem:
            return stem, f"{value:g}{unit}"
        case _:
            return name, str(value)


def _readable_size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:  # noqa: PLR2004 - the next unit
            return f"{count:.4g}{unit}"
        count /= 1024
    return f"{count:.4g}GiB"
