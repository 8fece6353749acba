"""A target that fails in every possible way, to test that each is found."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.target import MIB, Execute, Target, check_refusal


def _succeed() -> None:
    pass


def _raise() -> None:
    raise ValueError("no refusal")


def _exit() -> None:
    raise SystemExit(3)


def _crash() -> None:
    ctypes.string_at(0)


def _compute() -> None:
    # In C with the GIL held, where Python calls no signal handlers.
    sum(range(1 << 40))


def _allocate() -> None:
    bytearray(96 * MIB)


def _hide_allocation() -> None:
    try:
        bytearray(96 * MIB)
    except MemoryError:
        error = RuntimeError("it is damaged")
        error.__context__ = MemoryError()
        check_refusal(error)


def _stay_small() -> None:
    bytearray(32 * MIB)


def _refuse() -> None:
    check_refusal(ValueError("it is damaged"))


def _refuse_in_lines() -> None:
    check_refusal(ValueError("it is\ndamaged"))


WAYS: tuple[Callable[[], None], ...] = (
    _succeed, _raise, _exit, _crash, _compute, _allocate, _hide_allocation, _stay_small, _refuse,
    _refuse_in_lines,
)  # fmt: skip


def _mutate(random: Random) -> bytes:
    return bytes([random.randrange(len(WAYS))])


@contextmanager
def _open(_scratch: Path) -> Iterator[Execute]:
    yield lambda content: WAYS[content[0]]()


TARGET = Target(name="faulty", what="", mutate=_mutate, open=_open, test_runs=0)
