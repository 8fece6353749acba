"""Logging never waits for a reader."""

import logging
import os
from collections.abc import Iterator

import pytest

from embedgrpc.server.telemetry.logs import BackgroundHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: to read and to write."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("embedgrpc", logging.INFO, "", 0, message, (), None)


def test_lines_are_in_order(pipe: tuple[int, int]) -> None:
    """Lines logged before `flush` can be read after it."""
    handler = BackgroundHandler(pipe[1])
    for number in range(100):
        handler.emit(_record(f"line {number}"))
    handler.flush()
    os.close(pipe[1])
    with os.fdopen(os.dup(pipe[0])) as reader:
        assert reader.read().splitlines() == [f"line {number}" for number in range(100)]


def test_lines_without_a_reader_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    """A full pipe holds up no thread; once it is read again, the log counts the lost lines."""
    handler = BackgroundHandler(pipe[1], bytes_max=64 * 1024)
    handler.setFormatter(logging.Formatter("%(message)s %(lines)s", defaults={"lines": ""}))
    line, count = "x" * 1023, 1000
    for _ in range(count):
        handler.emit(_record(line))
    whole = missing = 0
    with os.fdopen(os.dup(pipe[0])) as reader:
        while whole + missing < count:
            found = reader.readline().rstrip()
            if "dropped" in found:
                missing += int(found.split()[-1])
            else:
                assert found == line
                whole += 1
    os.close(pipe[1])
    assert whole + missing == count
    # In the pipe, in the write call, and in the handler's queue.
    assert whole < 300


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    """Lines that cannot be written are dropped, and nothing else happens."""
    handler = BackgroundHandler(os.dup(pipe[1]))
    os.close(pipe[1])
    reader = os.dup(pipe[0])
    os.close(reader)
    handler.emit(_record("one"))
    handler.flush()
    assert not handler._waiting
