"""Log lines: for people on a terminal, JSON elsewhere. Never texts, never vectors.

They are written by a thread of their own: whoever logs, such as the event loop, never waits for
somebody to read them.
"""

import json
import logging
import os
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any, Literal

# What every record has; the rest was given as `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


# Lines that wait to be written: some ten thousand.
_WAITING_BYTES_MAX = 4 * 1024 * 1024
# How long the end of the process waits for its last lines to be read.
_FLUSH_S = 1.0

# They write a line for each request of a download, whose address may hold a signature.
_CHATTY = ("httpx2", "httpcore2", "filelock")


_GRPC = "grpc._cython.cygrpc"
# What gRPC logs as errors, with a stack, and clients cause. One leaves while it is answered or
# refused; one sends metadata or a path that is no UTF-8, which the line would hold.
_CAUSED_BY_CLIENTS = (
    "ExecuteBatchError raised in core",
    "Failed sending error status from server",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
)


def is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    """Return whether a record of gRPC is about more than what a client did."""
    message = record.getMessage()
    return not any(one in message for one in _CAUSED_BY_CLIENTS)


def configure(level: str, log_format: Literal["auto", "human", "json"]) -> bool:
    """Send log lines to stderr.

    Args:
        level: The least severe level that is written, in lower case.
        log_format: "auto" is human on a terminal.

    Returns:
        Whether they are JSON.
    """
    human = log_format == "human" or (log_format == "auto" and sys.stderr.isatty())
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Of the library that writes it, and once: filters are kept across calls.
    logging.getLogger(_GRPC).addFilter(is_no_fault_of_a_client)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return not human


class BackgroundHandler(logging.Handler):
    """Writes lines to a file from a thread, and drops those that there is no room for.

    Args:
        descriptor: Of the file.
        bytes_max: The most that waits to be written.
    """

    def __init__(self, descriptor: int, *, bytes_max: int = _WAITING_BYTES_MAX) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._busy = False
        # It may hang for good where nobody reads, which must not keep the process.
        self._writer = threading.Thread(target=self._write_all, name="logs", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, to be written soon."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - as every handler: a line that fails ends nothing
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > self._bytes_max:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, or until nobody seems to read it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, _FLUSH_S)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, dropped = b"".join(self._waiting), self._dropped
                self._waiting.clear()
                self._waiting_bytes = self._dropped = 0
                self._busy = True
            if dropped:
                lines += f"{self.format(_tell_dropped(dropped))}\n".encode()
            self._write(lines)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # Nobody reads any more, or the disk is full: serving goes on.
                return


def _tell_dropped(count: int) -> logging.LogRecord:
    message = "log lines were dropped, as they were not read in time"
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (), None)
    record.__dict__["lines"] = count
    return record


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """Time, level, event and what belongs to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = dict(_fields(record))
        stack = fields.pop("stack", "")
        details = "".join(f" {name}={value}" for name, value in fields.items())
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}{details}"
        if record.exc_info:
            stack = self.formatException(record.exc_info)
        return f"{line}\n{stack}" if stack else line
