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

PATIENCE_S = 20.0
BATCH = PaddedBatch(
    np.ones((1, 2), np.int64),
    np.ones((1, 2), np.int64),
    np.zeros((1, 2), np.int64),
    ("sentence_embedding",),
)


class Scripted:
    """A backend that does what it is told with each batch."""

    def __init__(self, value: float, *, lanes: int, device: str) -> None:
        self.lanes = lanes
        self.lanes_compete = False
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
        """Acts, and answers with its value."""
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
        """Counts."""
        assert not self.running
        self.closed += 1


class Pair:
    """A backend that is away when it is told to, its twin, and both as one."""

    def __init__(self) -> None:
        self.availability = Availability()
        self.upstream = Scripted(1, lanes=3, device="triton")
        self.twin = Scripted(2, lanes=1, device="cpu")
        self.both = FallbackBackend(self.upstream, self.availability, self.twin, model="m")
        self.gate = threading.Event()
        self.threads = ThreadPoolExecutor(8)

    def run(self, context: RunContext = NO_CONTEXT) -> float:
        """Runs a batch; who answered."""
        return float(self.both.run(BATCH, context)["sentence_embedding"][0, 0])

    def lose(self, error: BackendError | None = None) -> None:
        """Takes the upstream away."""
        self.upstream.act = raising(error or BackendUnreachableError("nobody is there"))
        self.availability.set(False)

    def hold(self, backend: Scripted) -> None:
        """Has runs last until the gate opens."""
        backend.act = lambda _: wait(self.gate)


def wait(event: threading.Event) -> None:
    """Waits for an event that must come."""
    assert event.wait(PATIENCE_S)


def raising(error: BackendError) -> Callable[[RunContext], None]:
    """Fails with an error."""

    def act(_: RunContext) -> None:
        raise error

    return act


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both are well; nothing is left running."""
    made = Pair()
    yield made
    made.gate.set()
    made.threads.shutdown()


def test_the_twin_rests_while_it_is_not_needed(pair: Pair) -> None:
    """As long as the upstream answers, nothing else runs; it looks like the upstream."""
    assert pair.run() == 1
    assert pair.twin.running_max == 0
    assert (pair.both.lanes, pair.both.parallelism, pair.both.device) == (3, 3, "triton")


def test_the_twin_runs_what_the_upstream_cannot(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """While the upstream is away the twin answers; each change is told once."""
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
    """A batch that a server lost is answered though the server is said to be there."""
    pair.upstream.act = raising(BackendUnreachableError("h:1 answered UNAVAILABLE"))
    assert pair.run() == 2
    assert [one.getMessage() for one in caplog.records] == ["batch left to the fallback"]


@pytest.mark.parametrize("kind", [BackendError, BackendOverloadedError, BackendDeadlineError])
def test_other_failures_are_passed_on(kind: type[BackendError], pair: Pair) -> None:
    """A batch that failed, or came too late, is not run a second time."""
    pair.upstream.act = raising(kind("no"))
    with pytest.raises(kind, match="no"):
        pair.run()
    assert pair.twin.running_max == 0


def test_a_cancelled_run_is_not_left_to_the_twin(pair: Pair) -> None:
    """What nobody waits for is not run a second time."""

    def be_cancelled(context: RunContext) -> None:
        context.cancellation.cancel()
        raise BackendCancelledError("nobody waits")

    pair.upstream.act = be_cancelled
    with pytest.raises(BackendCancelledError):
        pair.run(RunContext(cancellation=Cancellation()))
    assert pair.twin.running_max == 0


def test_the_twin_runs_no_more_at_once_than_it_can(pair: Pair) -> None:
    """Of batches that come together, the twin runs as many as it has lanes."""
    pair.lose()
    pair.twin.act = lambda _: wait(pair.gate)
    running = [pair.threads.submit(pair.run) for _ in range(3)]
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    pair.gate.set()
    assert [one.result(PATIENCE_S) for one in running] == [2, 2, 2]
    assert pair.twin.running_max == 1


@pytest.mark.parametrize("left_s", [-1, 0.05])
def test_nobody_waits_for_the_twin_beyond_the_deadline(left_s: float, pair: Pair) -> None:
    """A batch whose deadline passes before the twin is free is given up."""
    pair.lose()
    pair.hold(pair.twin)
    first = pair.threads.submit(pair.run, RunContext(deadline=math.inf))
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    with pytest.raises(BackendDeadlineError):
        pair.run(RunContext(deadline=time.monotonic() + left_s))
    pair.gate.set()
    assert first.result(PATIENCE_S) == 2


def test_a_free_twin_runs_nothing_that_is_late(pair: Pair) -> None:
    """A batch whose deadline passed elsewhere is given up, though the twin has time."""
    pair.lose()
    with pytest.raises(BackendDeadlineError):
        pair.run(RunContext(deadline=time.monotonic() - 1))
    assert pair.twin.running_max == 0


def test_nobody_waits_for_the_twin_in_vain(pair: Pair) -> None:
    """A batch that is cancelled before the twin is free is given up."""
    pair.lose()
    pair.hold(pair.twin)
    first = pair.threads.submit(pair.run)
    assert pair.twin.entered.acquire(timeout=PATIENCE_S)
    cancellation = Cancellation()
    # Until it is cancelled it has all the time that there is.
    waiting = RunContext(deadline=1e18, cancellation=cancellation)
    second = pair.threads.submit(pair.run, waiting)
    assert all(pair.upstream.entered.acquire(timeout=PATIENCE_S) for _ in range(2))
    cancellation.cancel()
    with pytest.raises(BackendCancelledError):
        second.result(PATIENCE_S)
    assert pair.twin.running_max == 1
    pair.gate.set()
    assert first.result(PATIENCE_S) == 2


def test_the_end_waits_for_the_twin(pair: Pair) -> None:
    """Closing gives up what waits, and frees the twin after its last run; twice is as once."""
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
