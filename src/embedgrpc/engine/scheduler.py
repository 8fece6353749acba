"""Keeps every lane of a backend busy with the best batch there is.

A lane is a thread. When it is free it takes a batch at once, however small; while it runs,
work accumulates. There is no timer anywhere. A batch's results reach the event loop with
one wake-up, whatever number of calls they belong to.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedgrpc.backends.base import (
    Backend,
    BackendError,
    BackendUnavailableError,
    PaddedBatch,
)
from embedgrpc.engine import errors
from embedgrpc.engine.admission import Admission
from embedgrpc.engine.batching import BatchBudget, BatchQueue
from embedgrpc.engine.delivery import Delivery, address_failures, address_results, hand_over
from embedgrpc.engine.padding import pad
from embedgrpc.engine.work import Job, QueuedSequence, WorkClass

_logger = logging.getLogger(__name__)

# A sequence without a deadline is as urgent as one that has this much time left: so nothing
# waits for ever behind calls with short deadlines.
_PATIENCE_S = {WorkClass.INTERACTIVE: 1.0, WorkClass.BULK: 60.0}


# How long a run that is under way may take when the scheduler closes. Its thread ends with the
# process at the latest.
_LANE_END_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of one batch.

    Attributes:
        model: Id of the model.
        started_ns: When the backend began, on the clock of `time.time_ns`.
        finished_ns: When it was done.
        sequences: How many sequences rode.
        tokens: How many tokens they had.
        padded_tokens: How many tokens were computed.
        traces: The traces of the calls that rode in it.
        error: The reason of the failure; empty for none.
    """

    model: str
    started_ns: int
    finished_ns: int
    sequences: int
    tokens: int
    padded_tokens: int
    traces: Sequence[object]
    error: str


class BatchObserver(Protocol):
    """Is told of every batch, on the lane's thread."""

    def batch_finished(self, report: BatchReport) -> None:
        """Takes the report. Must neither block nor raise."""
        ...


class Scheduler:
    """Runs the sequences of one model in batches.

    Args:
        model: Id of the model, for reports.
        backend: What runs them.
        budget: What a batch may cost.
        pad_token_id: The padding token.
        pad_left: Whether padding comes first.
        admission: Learns the drain rate.
        observers: Are told of every batch.
        loop: The event loop on which results are delivered.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: Backend,
        budget: BatchBudget,
        pad_token_id: int,
        pad_left: bool,
        admission: Admission,
        observers: Iterable[BatchObserver],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model = model
        self._backend = backend
        self._pad_token_id = pad_token_id
        self._pad_left = pad_left
        self._admission = admission
        self._observers = tuple(observers)
        self._loop = loop
        self._queue = BatchQueue(budget)
        self._overhead_tokens = budget.overhead_tokens
        self._changed = threading.Condition()
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._run_lane, name=f"lane-{model}-{lane}", daemon=True)
            for lane in range(backend.lanes)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(self, job: Job) -> None:
        """Queues the sequences of a job, unless it was cancelled. From any thread.

        Raises:
            ShuttingDownError: The scheduler is closed.
        """
        urgency = min(job.call.deadline, time.monotonic() + _PATIENCE_S[job.call.work_class])
        queued = [
            QueuedSequence(job, index, sequence, urgency)
            for index, sequence in enumerate(job.sequences)
            if sequence is not None
        ]
        with self._changed:
            if self._closed:
                raise errors.ShuttingDownError("the server is about to stop")
            if job.cancelled:
                return
            job.queued = queued
            for one in queued:
                self._queue.push(one)
            self._changed.notify(len(self._lanes))

    def cancel(self, job: Job) -> None:
        """Takes a job out of the queue, for good; a lane ends what it runs. From any thread."""
        with self._changed:
            job.cancelled = True
            for one in job.queued:
                self._queue.remove(one)

    def close(self) -> None:
        """Stops the lanes after the batches that they run, and fails what is left. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + _LANE_END_S_MAX
        for lane in self._lanes:
            lane.join(max(until - time.monotonic(), 0))
            if lane.is_alive():
                _logger.warning("a run does not end", extra={"model": self._model})
        while batch := self._queue.pop_batch():
            stopped = errors.ShuttingDownError("the server stopped before this was run")
            self._deliver_soon(address_failures(batch, stopped))

    def deliver(
        self, job: Job, failures: Iterable[tuple[Sequence[int], errors.EngineError]]
    ) -> None:
        """Hands failures to a job's sink on the event loop, all at once. From any thread."""
        self._deliver_soon([Delivery(job, indices, 0, error) for indices, error in failures])

    def _run_lane(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not len(self._queue):
                    self._changed.wait()
                if self._closed:
                    return
                batch = self._queue.pop_batch()
            now = time.monotonic()
            wanted = [one for one in batch if not one.job.cancelled]
            alive = [one for one in wanted if one.job.call.deadline > now]
            if len(alive) < len(wanted):
                late = [one for one in wanted if one.job.call.deadline <= now]
                expired = errors.DeadlineExpiredError("the deadline passed in the queue")
                self._deliver_soon(address_failures(late, expired))
            if alive:
                self._deliver_soon(self._run(alive))

    def _run(self, batch: list[QueuedSequence]) -> list[Delivery]:
        started_ns = time.time_ns()
        started = time.perf_counter()
        error: errors.EngineError | None = None
        try:
            deliveries = address_results(
                batch, self._backend.run(self._pad(batch)), pad_left=self._pad_left
            )
        except BackendUnavailableError as away:
            _logger.warning(
                "backend unavailable", extra={"model": self._model, "problem": str(away)}
            )
            error = errors.BackendUnavailableError("the backend of the model is away")
        except BackendError as failure:
            # Without its causes, which may quote a token or a text.
            _logger.error(  # noqa: TRY400 - see above
                "batch failed", extra={"model": self._model, "problem": str(failure)}
            )
            error = errors.BackendFailedError("the model was run, and the run failed")
        except Exception as fault:  # noqa: BLE001 - else every later call would hang
            error = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - what it says may hold a text
                "fault in a lane", extra={"model": self._model, **error.log_fields(fault)}
            )
        if error:
            deliveries = address_failures(batch, error)
        else:
            # A batch of its own costs something: else small ones would pass for slow ones.
            tokens = sum(one.tokens for one in batch) + self._overhead_tokens
            self._admission.drained(tokens * len(self._lanes), time.perf_counter() - started)
        if self._observers:
            self._report(batch, started_ns, error)
        return deliveries

    def _pad(self, batch: list[QueuedSequence]) -> PaddedBatch:
        return pad(
            [one.sequence for one in batch],
            pad_token_id=self._pad_token_id,
            left=self._pad_left,
            outputs=tuple(dict.fromkeys(name for one in batch for name in one.job.outputs)),
        )

    def _report(
        self, batch: list[QueuedSequence], started_ns: int, error: errors.EngineError | None
    ) -> None:
        # By identity: what is opaque here need not be hashable.
        traces = {id(one.job.call): one.job.call.trace for one in batch if one.job.call.trace}
        report = BatchReport(
            model=self._model,
            started_ns=started_ns,
            finished_ns=time.time_ns(),
            sequences=len(batch),
            tokens=sum(one.tokens for one in batch),
            padded_tokens=len(batch) * max(one.tokens for one in batch),
            traces=tuple(traces.values()),
            error=error.reason.value if error else "",
        )
        for observer in self._observers:
            try:
                observer.batch_finished(report)
            except Exception:
                _logger.exception("fault in an observer", extra={"model": self._model})

    def _deliver_soon(self, deliveries: list[Delivery]) -> None:
        # Once the loop is closed nobody waits for results.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hand_over, deliveries)
