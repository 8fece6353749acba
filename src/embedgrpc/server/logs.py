"""Log lines: for people on a terminal, JSON elsewhere. Never texts, never vectors."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

# What every record has; the rest was given as `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


# They write a line for each request of a download, whose address may hold a signature.
_CHATTY = ("httpx2", "httpcore2", "filelock")


def configure(level: str, log_format: Literal["auto", "human", "json"]) -> None:
    """Sends log lines to stderr.

    Args:
        level: The least severe level that is written, in lower case.
        log_format: "auto" is human on a terminal.
    """
    human = log_format == "human" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


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
