import threading

import pytest

from embedgrpc.backends.base import NO_CONTEXT, Availability, Cancellation, RunContext


def test_cancellation_is_told_once() -> None:
    """Everybody who asked hears of it once, however often it is cancelled."""
    cancellation = Cancellation()
    told: list[str] = []
    cancellation.add_callback(lambda: told.append("early"))
    assert not cancellation.cancelled
    cancellation.cancel()
    cancellation.cancel()
    assert cancellation.cancelled
    cancellation.add_callback(lambda: told.append("late"))
    assert told == ["early", "late"]


def test_cancellation_forgets_who_left() -> None:
    """Who takes a callback back is not called, and may do so twice."""
    cancellation = Cancellation()
    callback = threading.Event()
    cancellation.add_callback(callback.set)
    cancellation.remove_callback(callback.set)
    cancellation.remove_callback(callback.set)
    cancellation.cancel()
    assert not callback.is_set()


def test_cancellation_reaches_another_thread() -> None:
    """It may come from any thread."""
    cancellation = Cancellation()
    told = threading.Event()
    cancellation.add_callback(told.set)
    thread = threading.Thread(target=cancellation.cancel)
    thread.start()
    thread.join()
    assert told.is_set()


@pytest.mark.parametrize("context", [NO_CONTEXT, RunContext()])
def test_nobody_in_particular_waits_for_ever(context: RunContext) -> None:
    """A context of nobody's has no deadline and nothing to pass on."""
    assert context.deadline == float("inf")
    assert context.metadata == ()
    assert not context.cancellation.cancelled


def test_availability_tells_changes_alone() -> None:
    """A watcher hears of each change once, and of absence when it begins to watch."""
    availability = Availability()
    told: list[bool] = []
    availability.watch(told.append)
    for one in (True, False, False, True):
        availability.set(one)
    assert told == [False, True]
    availability.set(False)
    late: list[bool] = []
    availability.watch(late.append)
    assert late == [False]
