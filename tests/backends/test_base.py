import threading

import pytest

from embedgrpc.backends.base import NO_CONTEXT, Availability, Cancellation, RunContext


def test_callbacks_run_once() -> None:
    """Each callback runs once, even if the run is cancelled twice."""
    cancellation = Cancellation()
    told: list[str] = []
    cancellation.add_callback(lambda: told.append("early"))
    assert not cancellation.cancelled
    cancellation.cancel()
    cancellation.cancel()
    assert cancellation.cancelled
    cancellation.add_callback(lambda: told.append("late"))
    assert told == ["early", "late"]


def test_removed_callbacks_do_not_run() -> None:
    """A callback that was removed does not run, and may be removed twice."""
    cancellation = Cancellation()
    callback = threading.Event()
    cancellation.add_callback(callback.set)
    cancellation.remove_callback(callback.set)
    cancellation.remove_callback(callback.set)
    cancellation.cancel()
    assert not callback.is_set()


def test_any_thread_may_cancel() -> None:
    """Another thread may cancel a run."""
    cancellation = Cancellation()
    told = threading.Event()
    cancellation.add_callback(told.set)
    thread = threading.Thread(target=cancellation.cancel)
    thread.start()
    thread.join()
    assert told.is_set()


@pytest.mark.parametrize("context", [NO_CONTEXT, RunContext()])
def test_the_default_context_has_no_limits(context: RunContext) -> None:
    """A context without arguments has no deadline and no metadata."""
    assert context.deadline == float("inf")
    assert context.metadata == ()
    assert not context.cancellation.cancelled


def test_availability_reports_changes_only() -> None:
    """A watcher is notified of each change once, and at once of a backend that is away."""
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
