"""Threads on cores of their own."""

import os
import queue
import threading

import pytest

from embedgrpc.machine import affinity
from embedgrpc.machine.affinity import core_of_each_thread, running_on, thread_ids, threads_on


def test_a_thread_stays_on_its_processors_inside_the_block() -> None:
    """After the block it may run where it could before, also if the block raised."""
    everywhere = os.sched_getaffinity(0)
    one = frozenset({max(everywhere)})
    with running_on(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == everywhere
    with pytest.raises(ValueError, match="inside"), running_on(one):
        raise ValueError("inside")
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.parametrize("processors", [frozenset[int](), frozenset({100_000})])
def test_processors_that_are_not_there_change_nothing(processors: frozenset[int]) -> None:
    """A thread then stays where it is: the machine may have lost a core since the start."""
    everywhere = os.sched_getaffinity(0)
    with running_on(processors):
        assert os.sched_getaffinity(0) == everywhere


@pytest.mark.parametrize(
    ("available", "threads", "wanted"),
    [
        (2, 2, [frozenset({0, 2}), frozenset({1, 3})]),
        # Fewer threads than cores: which ones are free is the kernel's to know.
        (2, 1, []),
        (2, 3, []),
        # A CPU quota of one core.
        (1, 1, []),
        (1, 2, []),
    ],
)
def test_each_thread_has_a_core_where_there_are_as_many(
    monkeypatch: pytest.MonkeyPatch, available: int, threads: int, wanted: list[frozenset[int]]
) -> None:
    """Each gets both processors of its core."""
    cores = [frozenset({0, 2}), frozenset({1, 3})]
    monkeypatch.setattr(affinity, "processors_by_core", lambda: cores)
    monkeypatch.setattr(affinity, "available_cores", lambda: available)
    assert core_of_each_thread(threads) == wanted


def test_threads_are_pinned_and_let_go_again() -> None:
    """They are found by the core that they are on; one that has ended changes nothing."""
    everywhere = os.sched_getaffinity(0)
    core = frozenset({max(everywhere)})
    present, stop = thread_ids(), threading.Event()
    started: queue.SimpleQueue[int] = queue.SimpleQueue()

    def stay() -> None:
        os.sched_setaffinity(0, core)
        started.put(threading.get_native_id())
        stop.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    try:
        number = started.get(timeout=60)
        threads = threads_on([core], but=present)
        for pinned, wanted in ((True, core), (False, everywhere), (True, core), (True, core)):
            threads.pin(pinned=pinned)
            assert os.sched_getaffinity(number) == wanted
        threads_on([core], but=[*present, number]).pin(pinned=False)
        assert os.sched_getaffinity(number) == core
    finally:
        stop.set()
        thread.join()
    threads.pin(pinned=False)


def test_threads_that_move_late_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a session is there before its threads have moved to their cores."""
    core = frozenset({max(os.sched_getaffinity(0))})
    present, looked, stop = thread_ids(), threading.Event(), threading.Event()
    started: queue.SimpleQueue[int] = queue.SimpleQueue()

    def stay() -> None:
        started.put(threading.get_native_id())
        looked.wait(60)
        os.sched_setaffinity(0, core)
        stop.wait(60)

    def look() -> set[int]:
        found = thread_ids()
        looked.set()
        return found

    monkeypatch.setattr(affinity, "thread_ids", look)
    monkeypatch.setattr(affinity, "_MOVE_S_MAX", 60)
    thread = threading.Thread(target=stay)
    thread.start()
    try:
        number = started.get(timeout=60)
        assert threads_on([core], but=present)._cores == {number: core}
    finally:
        stop.set()
        thread.join()
