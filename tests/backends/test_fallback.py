import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedgrpc.backends.base import (
    NO_CONTEXT,
    Availability,
    BackendCancelledError,
    BackendDeadlineError,
    BackendError,
    BackendOverloadedError,
    BackendUnreachableError,
    Cancellation,
    PaddedBatch,
    RunContext,
)
from embedgrpc.backends.fallback import FallbackBackend
from embedgrpc.libraries.arrays import FloatArray

PATIENCE_S = 60.0
BATCH = PaddedBatch(
    np.ones((1, 2), np.int64),
    np.ones((1, 2), np.int64),
    np.zeros((1, 2), np.int64),
    ("sentence_embedding",),
)


class Scripted:
    """A backend whose behaviour a test sets."""

    def __init__(self, value: float, *, lanes: int, device: str) -> None:
        self.lanes = lanes
        self.lanes_compete = False
        self.can_give_way = False
        self.parallelism = lanes
        self.device = device
        self.act: Callable[[RunContext], None] = lambda _: None
        self.entered = threading.Semaphore(0)
        self.running = 0
        self.running_max = 0
        self.closed = 0
        self._value = np.full((1, 1), value, np.float32)
        self._lock = threading.Lock()

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Do what the test set, and return the backend's value."""
        with self._lock:
            self.running += 1
            self.running_max = max(self.running, self.running_max)
        self.entered.release()
        try:
            self.act(context)
        finally:
            with self._lock:
                self.running -= 1
        return dict.fromkeys(batch.outputs, self._value)

    def close(self) -> None:
        """Count the calls."""
        assert not self.running
        self.closed += 1


class Pair:
    """A remote backend that a test can take away, its twin, and the pair of them."""

    def __init__(self) -> None:
        self.availability = Availability()
        self.upstream = Scripted(1, lanes=3, device="triton")
        self.twin = Scripted(2, lanes=1, device="cpu")
        self.both = FallbackBackend(self.upstream, self.availability, self.twin, model="m")
        self.gate = threading.Event()
        self.threads = ThreadPoolExecutor(8)

    def run(self, context: RunContext = NO_CONTEXT) -> float:
        """Run a batch; return 1 if the remote backend answered, 2 for the twin."""
        return float(self.both.run(BATCH, context)["sentence_embedding"][0, 0])

    def lose(self, error: BackendError | None = None) -> None:
        """Make the remote backend unreachable."""
        self.upstream.act = raising(error or BackendUnreachableError("connection refused"))
        self.availability.set(False)

    def hold(self, backend: Scripted) -> None:
        """Make runs last until the gate opens."""
        backend.act = lambda _: wait(self.gate)


def wait(event: threading.Event) -> None:
    """Wait for an event that must come."""
    assert event.wait(PATIENCE_S)


def raising(error: BackendError) -> Callable[[RunContext], None]:
    """Return an action that raises an error."""

    def act(_: RunContext) -> None:
        raise error

    return act


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A pair of healthy backends; nothing is left running."""
    made = Pair()
    yield made
    made.gate.set()
    made.threads.shutdown()


def test_the_twin_is_idle_while_the_remote_backend_answers(pair: Pair) -> None:
    """While the remote backend answers, the twin runs nothing; lanes and device are its."""
    assert pair.run() == 1
    assert pair.twin.running_max == 0
    assert (pair.both.lanes, pair.both.parallelism, pair.both.device) == (3, 3, "triton")


def test_the_twin_runs_what_the_upstream_cannot(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """While the remote backend is away, the twin answers; each change is logged once."""
    caplog.set_level(logging.INFO, "embedgrpc")
    pair.lose()
    assert [pair.run(), pair.run()] == [2, 2]
    assert pair.both.availability.available
    pair.upstream.act = lambda _: None
    pair.availability.set(True)
    assert [pair.run(), pair.run()] == [1, 1]
    told = [one.getMessage() for one in caplog.records]
    assert told == ["fallback takes over", "fallback not needed any more"]


def test_one_lost_batch_is_run_again(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """The twin answers a batch that a server lost, even while the server counts as available."""
    pair.upstream.act = raising(BackendUnreachableError("h:1 answered UNAVAILABLE"))
    assert pair.run() == 2
    assert [one.getMessage() for one in caplog.records] == ["batch left to the fallback"]


@pytest.mark.parametrize("kind", [BackendError, BackendOverloadedError, BackendDeadlineError])
def test_other_failures_are_passed_on(kind: type[BackendError], pair: Pair) -> None:
    """A batch that failed or was late does not run a second time."""
    pair.upstream.act = raising(kind("no"))
    with pytest.raises(kind, match="no"):
        pair.run()
    assert pair.twin.running_max == 0


def test_a_cancelled_run_is_not_left_to_the_twin(pair: Pair) -> None:
    """A cancelled batch does not run a second time."""

    def be_cancelled(context: RunContext) -> None:
        context.cancellation.cancel()
        raise BackendCancelledError("cancelled")

    pair.upstream.act = be_cancelled
    with pytest.raises(BackendCancelledError):
        pair.run(RunContext(cancellation=Cancellation()))
    assert pair.twin.running_max == 0


def test_the_twin_runs_no_more_at_once_than_it_can(pair: Pair) -> None:
    """The twin runs as many batches at once as it has lanes."""
    pair.lose()
    pair.twin.act = lambda _: wait(pair.gate)
    running = [pair.threads.submit(pair.run) for _ in range(3)]
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    pair.gate.set()
    assert [one.result(PATIENCE_S) for one in running] == [2, 2, 2]
    assert pair.twin.running_max == 1


@pytest.mark.parametrize("left_s", [-1, 0.05])
def test_a_batch_waits_for_the_twin_until_its_deadline(left_s: float, pair: Pair) -> None:
    """A batch whose deadline passes before the twin is free fails."""
    pair.lose()
    pair.hold(pair.twin)
    first = pair.threads.submit(pair.run, RunContext(deadline=math.inf))
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    with pytest.raises(BackendDeadlineError):
        pair.run(RunContext(deadline=time.monotonic() + left_s))
    pair.gate.set()
    assert first.result(PATIENCE_S) == 2


def test_a_free_twin_runs_nothing_that_is_late(pair: Pair) -> None:
    """A batch whose deadline passed on the remote backend fails, although the twin is free."""
    pair.lose()
    with pytest.raises(BackendDeadlineError):
        pair.run(RunContext(deadline=time.monotonic() - 1))
    assert pair.twin.running_max == 0


def test_a_cancelled_batch_does_not_wait_for_the_twin(pair: Pair) -> None:
    """A batch that is cancelled before the twin is free fails at once."""
    pair.lose()
    pair.hold(pair.twin)
    first = pair.threads.submit(pair.run)
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    cancellation = Cancellation()
    # Practically without a deadline.
    waiting = RunContext(deadline=1e18, cancellation=cancellation)
    second = pair.threads.submit(pair.run, waiting)
    assert all(pair.upstream.entered.acquire(timeout=PATIENCE_S) for _ in range(2))
    cancellation.cancel()
    with pytest.raises(BackendCancelledError):
        second.result(PATIENCE_S)
    assert pair.twin.running_max == 1
    pair.gate.set()
    assert first.result(PATIENCE_S) == 2


def test_closing_waits_for_the_twin(pair: Pair) -> None:
    """Closing ends waiting batches and frees the twin after its last run; twice does no harm."""
    pair.lose()
    pair.hold(pair.twin)
    first = pair.threads.submit(pair.run)
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    second = pair.threads.submit(pair.run)
    closing = pair.threads.submit(pair.both.close)
    with pytest.raises(BackendUnreachableError, match="closed"):
        second.result(PATIENCE_S)
    assert pair.twin.closed == 0
    pair.gate.set()
    assert first.result(PATIENCE_S) == 2
    closing.result(PATIENCE_S)
    pair.both.close()
    assert pair.twin.closed == 1
    with pytest.raises(BackendUnreachableError, match="closed"):
        pair.run()
