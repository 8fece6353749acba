"""The rows to send: those that a broken stream left unanswered, then those of the next unit.

A stream reads its inputs in a thread of gRPC's. When it breaks, that thread may still hold the
feed, so each stream has a number, and an older one gets nothing any more.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple


class Key(NamedTuple):
    """A row: the number of its unit, and its place there."""

    unit: int
    row: int


class Feed:
    """The rows of units, each until it has a result.

    Args:
        next_unit: Returns the rows of the next unit that have a text, and the count of all its
            rows; None after the last.
        rows_max: The limit of rows in units that are open. More than a unit and a message of the
            stream together: the stream keeps back a message that is not full.
    """

    def __init__(
        self,
        next_unit: Callable[[], tuple[list[tuple[Key, str]], int] | None],
        *,
        rows_max: int,
    ) -> None:
        self._next_unit = next_unit
        self._rows_max: Final = rows_max
        self._changed = threading.Condition()
        self._fresh: deque[tuple[Key, str]] = deque()
        self._again: deque[tuple[Key, str]] = deque()
        self._unanswered: dict[Key, str] = {}
        self._repeated: set[Key] = set()  # unanswered rows that were sent before
        self._open_rows = 0
        self._stream = 0
        self._stopping = False
        self._has_ended = False
        self._failure: BaseException | None = None

    def inputs(self) -> Iterator[tuple[Key, str]]:
        """Yield the rows for a new stream; older streams get no more."""
        with self._changed:
            self._stream += 1
            self._again.extendleft(reversed(self._unanswered.items()))
            self._unanswered.clear()
            self._repeated.clear()
            self._changed.notify_all()
            return self._rows(self._stream)

    def answered(self, key: Key) -> None:
        """Forget a row that has its result."""
        with self._changed:
            del self._unanswered[key]
            self._repeated.discard(key)

    def send_again(self, key: Key) -> None:
        """Send a row once more, after those that are under way."""
        with self._changed:
            self._again.append((key, self._unanswered.pop(key)))
            self._repeated.add(key)
            self._changed.notify_all()

    def close_unit(self, rows: int) -> None:
        """Make room: a unit was written."""
        with self._changed:
            self._open_rows -= rows
            self._changed.notify_all()

    def stop(self) -> None:
        """Open no further unit. A handler of signals may call this."""
        self._stopping = True
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End every stream: no thread waits for rows any more."""
        with self._changed:
            self._stream += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the streams with an error of the files."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error of the files, if there was one."""
        if self._failure is not None:
            raise self._failure

    @property
    def is_empty(self) -> bool:
        """Whether every row of every unit has its result."""
        with self._changed:
            pending = self._again or self._unanswered or self._fresh
            return not pending and (self._has_ended or self._stopping)

    def _rows(self, stream: int) -> Iterator[tuple[Key, str]]:
        while (row := self._take(stream)) is not None:
            yield row

    def _take(self, stream: int) -> tuple[Key, str] | None:
        """Return the next row; None where the stream shall end."""
        with self._changed:
            while not (self._failure or stream != self._stream):
                waiting = self._again or self._fresh
                if waiting:
                    key, text = waiting.popleft()
                    self._unanswered[key] = text
                    return key, text
                if self._has_ended or self._stopping:
                    return None
                if self._open_rows < self._rows_max:
                    self._open_next()
                elif self._repeated:
                    # A message that is not full may hold it, and the units that are open wait for
                    # it: end this stream, which sends that message, and begin another.
                    return None
                else:
                    self._changed.wait()
            return None

    def _open_next(self) -> None:
        try:
            opened = self._next_unit()
        except BaseException as error:  # noqa: BLE001 -- raised in the thread of the run
            self._failure = error
            return
        if opened is None:
            self._has_ended = True
            return
        rows, count = opened
        self._fresh.extend(rows)
        self._open_rows += count
