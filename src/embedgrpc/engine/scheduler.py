"""Keeps every lane of a backend busy with the best batch there is.

A lane is a thread. When it is free it takes a batch at once, however small; while it runs,
work accumulates. There is no timer anywhere. A batch's results reach the event loop with
one wake-up, whatever number of calls they belong to.
"""

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import (
    Backend,
    BackendError,
    BackendUnavailableError,
    FloatArray,
    PaddedBatch,
)
from embedgrpc.engine import errors
from embedgrpc.engine.admission import Admission
from embedgrpc.engine.batching import BatchBudget, BatchQueue
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


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Results or a failure for some sequences of one job."""

    job: Job
    indices: Sequence[int]
    tokens: int
    outcome: FloatArray | errors.EngineError


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
        self._changed = threading.Condition()
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._run_lane, name=f"lane-{model}-{lane}", daemon=True)
            for lane in range(backend.lanes)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(self, job: Job) -> list[QueuedSequence]:
        """Queues the sequences of a job. From any thread.

        Returns:
            What stands in the queue, for `discard`.

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
            for one in queued:
                self._queue.push(one)
            self._changed.notify(len(self._lanes))
        return queued

    def discard(self, queued: Iterable[QueuedSequence]) -> None:
        """Takes sequences out that nobody waits for, unless a lane runs them. From any thread."""
        with self._changed:
            for one in queued:
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
            self._deliver_soon(_failures(batch, stopped))

    def deliver(
        self, job: Job, failures: Iterable[tuple[Sequence[int], errors.EngineError]]
    ) -> None:
        """Hands failures to a job's sink on the event loop, all at once. From any thread."""
        self._deliver_soon([_Delivery(job, indices, 0, error) for indices, error in failures])

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
                self._deliver_soon(_failures(late, expired))
            if alive:
                self._deliver_soon(self._run(alive))

    def _run(self, batch: list[QueuedSequence]) -> list[_Delivery]:
        started_ns = time.time_ns()
        started = time.perf_counter()
        error: errors.EngineError | None = None
        try:
            deliveries = _results(batch, self._backend.run(self._pad(batch)))
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
            deliveries = _failures(batch, error)
        else:
            tokens = sum(one.tokens for one in batch)
            self._admission.drained(tokens * len(self._lanes), time.perf_counter() - started)
        if self._observers:
            self._report(batch, started_ns, error)
        return deliveries

    def _pad(self, batch: list[QueuedSequence]) -> PaddedBatch:
        return pad(
            [one.sequence for one in batch],
            pad_token_id=self._pad_token_id,
            left=self._pad_left,
            outputs=tuple(dict.fromkeys(one.job.output for one in batch)),
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

    def _deliver_soon(self, deliveries: list[_Delivery]) -> None:
        # Once the loop is closed nobody waits for results.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, deliveries)


def _results(batch: list[QueuedSequence], results: Mapping[str, FloatArray]) -> list[_Delivery]:
    """Gives each job its rows of the output it asked for, in as few pieces as can be."""
    positions_by_job: dict[Job, list[int]] = {}
    for position, one in enumerate(batch):
        positions_by_job.setdefault(one.job, []).append(position)
    finite: dict[str, NDArray[np.bool_]] = {
        output: np.asarray(np.isfinite(rows).all(axis=1)) for output, rows in results.items()
    }
    deliveries = []
    for job, positions in positions_by_job.items():
        good = [position for position in positions if finite[job.output][position]]
        if good:
            riders = [batch[position] for position in good]
            deliveries.append(_delivery(riders, results[job.output][good]))
        if len(good) < len(positions):
            bad = [batch[position] for position in positions if not finite[job.output][position]]
            error = errors.NonFiniteOutputError("the model answered with NaN or infinity")
            deliveries.append(_delivery(bad, error))
    return deliveries


def _failures(batch: list[QueuedSequence], error: errors.EngineError) -> list[_Delivery]:
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for one in batch:
        riders_by_job.setdefault(one.job, []).append(one)
    # Each job gets an error of its own: raising one adds to it.
    return [_delivery(riders, copy.copy(error)) for riders in riders_by_job.values()]


def _delivery(riders: list[QueuedSequence], outcome: FloatArray | errors.EngineError) -> _Delivery:
    """Addresses an outcome to sequences of one job."""
    return _Delivery(
        job=riders[0].job,
        indices=[rider.index for rider in riders],
        tokens=sum(rider.tokens for rider in riders),
        outcome=outcome,
    )


def _deliver(deliveries: list[_Delivery]) -> None:
    for delivery in deliveries:
        job = delivery.job
        job.reservation.release(len(delivery.indices), delivery.tokens)
        if job.cancelled:
            continue
        try:
            if isinstance(delivery.outcome, errors.EngineError):
                job.sink.failed(delivery.indices, delivery.outcome)
            else:
                job.sink.succeeded(delivery.indices, delivery.outcome)
        except Exception as error:  # noqa: BLE001 - others of this batch want their results
            fault = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - what it says may hold a text
                "fault in a sink", extra=fault.log_fields(error)
            )
            _tell_of_fault(delivery, fault)


def _tell_of_fault(delivery: _Delivery, fault: errors.EngineError) -> None:
    try:
        delivery.job.sink.failed(delivery.indices, fault)
    except Exception as error:  # noqa: BLE001 - others of this batch want their results
        _logger.error(  # noqa: TRY400 - what it says may hold a text
            "fault in a sink that was told of a fault", extra=fault.log_fields(error)
        )
