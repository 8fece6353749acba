"""A file that is read again when it changes. What was read stays in use while the file is bad."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from embedgrpc.machine.file_state import file_state
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

_FILE_BYTES_MAX = 4 * 1024 * 1024

Content = TypeVar("Content")


class FileError(Exception):
    """A file cannot be used; the message names the setting, the file, and what is wrong."""


class WatchedFile(Generic[Content]):
    """What a file says now.

    Args:
        setting: The setting that names the file.
        path: Its path.
        parse: Reads its bytes; raises ValueError with a message that holds nothing secret.

    Raises:
        FileError: It cannot be used.
    """

    def __init__(self, setting: str, path: str, parse: Callable[[bytes], Content]) -> None:
        self._setting = setting
        self._path = path
        self._parse = parse
        self._state = file_state(path)
        self._content = self._read()
        self._problem = ""
        self._reading = threading.Lock()
        self._reloads = {"loaded": 0, "refused": 0}

    @property
    def content(self) -> Content:
        """What it said when it could last be used."""
        return self._content

    def check(self) -> None:
        """Read the file without using it. Blocks.

        Raises:
            FileError: It cannot be used.
        """
        self._read()

    def reload(self) -> bool:
        """Read the file again if it has changed; return whether its content has. Blocks."""
        # Who asks while another thread reads must not be told that nothing has changed.
        with self._reading:
            return self._reload()

    def _reload(self) -> bool:
        state = file_state(self._path)
        # A file that could not be used is read again: it may have been half written.
        if state == self._state and not self._problem:
            return False
        self._state = state
        try:
            content = self._read()
        except FileError as error:
            self._refuse(str(error))
            return False
        if content == self._content and not self._problem:
            return False
        changed, self._content, self._problem = content != self._content, content, ""
        self._reloads["loaded"] += 1
        _logger.info("file reloaded", extra={"setting": self._setting, "file": self._path})
        return changed

    def read(self) -> Iterator[Reading]:
        """Return how often it was reloaded. From any thread."""
        for outcome, count in self._reloads.items():
            attributes = {"setting": self._setting, "outcome": outcome}
            yield Reading("embedgrpc.credentials.reloads", count, attributes)

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            self._reloads["refused"] += 1
            _logger.error(
                "file not reloaded; what it said before stays in use", extra={"problem": problem}
            )
        self._problem = problem

    def _read(self) -> Content:
        where = f"{self._setting} {self._path}"
        try:
            with Path(self._path).expanduser().open("rb") as file:
                content = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise FileError(f"{where}: cannot be read: {error.strerror}") from None
        except RuntimeError:
            raise FileError(f"{where}: this user has no home folder") from None
        if len(content) > _FILE_BYTES_MAX:
            raise FileError(f"{where}: it has more than {_FILE_BYTES_MAX} bytes")
        try:
            return self._parse(content)
        except ValueError as error:
            raise FileError(f"{where}: {error}") from None
