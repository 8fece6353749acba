"""Keeps every lane of a backend busy with the best batch there is.

A lane is one batch in flight. When it is free it takes a batch at once, however small; while it
runs, work accumulates. There is no timer anywhere. One thread more than there are lanes sees to
it that while all of them run, the next batch is laid out and the last one's results are handed
out. They reach the event loop with one wake-up a batch, whatever number of calls they belong to.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from embedgrpc.backends.base import Backend, PaddedBatch
from embedgrpc.engine import errors
from embedgrpc.engine.admission import Admission
from embedgrpc.engine.batching import BatchBudget
from embedgrpc.engine.delivery import Delivery, address_failure, hand_over
from embedgrpc.engine.execution import BatchRunner, LaidOut
from embedgrpc.engine.queueing import BatchQueue
from embedgrpc.engine.reports import BatchObserver, BatchReporter
from embedgrpc.engine.work import Job, QueuedSequence, Row, SequenceKey
from embedgrpc.engine.work_class import WorkClass

_logger = logging.getLogger(__name__)

# A sequence without a deadline is as urgent as one that has this much time left: so nothing
# waits for ever behind calls with short deadlines.
_PATIENCE_S = {WorkClass.INTERACTIVE: 1.0, WorkClass.BULK: 60.0}


# How long a run that is under way may take when the scheduler closes. Its thread ends with the
# process at the latest.
_LANE_END_S_MAX = 10.0


class Scheduler:
    """Runs the sequences of one model in batches.

    Args:
        model: Id of the model, for reports.
        backend: What runs them.
        budget: What a batch may cost; `set_budget` changes it.
        weights: How much more than others some callers get.
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
        weights: Mapping[str, float] | None = None,
        pad_token_id: int,
        pad_left: bool,
        admission: Admission,
        observers: Iterable[BatchObserver],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model = model
        self._backend = backend
        self._admission = admission
        self._loop = loop
        self._runner = BatchRunner(
            model=model, backend=backend, pad_token_id=pad_token_id, pad_left=pad_left
        )
        self._reporter = BatchReporter(model, observers)
        self._queue = BatchQueue(budget, weights)
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # For whoever waits until nothing runs or waits.
        self._idle = threading.Condition(lock)
        self._closed = False
        self._running = dict.fromkeys(WorkClass, 0)
        self._prepared: LaidOut | None = None
        self._preparing = False
        # What runs now, by what it is made of: more of the same gets the same answer.
        self._in_flight: dict[SequenceKey, Row] = {}
        # Since when the time of the lanes has not been accounted for.
        self._busy_since = 0.0
        self._lanes = [
            threading.Thread(target=self._run_lane, name=f"lane-{model}-{lane}", daemon=True)
            for lane in range(backend.lanes + 1)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def budget(self) -> BatchBudget:
        """What a batch may cost."""
        return self._queue.budget

    def set_budget(self, budget: BatchBudget) -> None:
        """Changes what a batch may cost, from the next one on. From any thread."""
        with self._changed:
            self._queue.budget = budget
        self._admission.set_batch_tokens(budget.tokens)

    def submit(self, job: Job) -> None:
        """Queues the sequences of a job, unless it was cancelled. From any thread.

        A sequence that equals one in flight waits for that one's answer.

        Raises:
            ShuttingDownError: The scheduler is closed.
        """
        now = time.monotonic()
        queued = self._queue_up(job, now)
        with self._changed:
            if self._closed:
                raise errors.ShuttingDownError("the server is about to stop")
            if job.cancelled:
                return
            job.queued = queued
            for one in queued:
                row = self._in_flight.get(one.key)
                if row is None:
                    self._queue.push(one, now)
                else:
                    one.gone = True
                    row.append(one)
            self._changed.notify()

    def _queue_up(self, job: Job, now: float) -> list[QueuedSequence]:
        """Makes the entries of a job's sequences.

        They are due one after the other, at the pace at which they can be run: so a short job
        of the same caller does not wait for the whole of a long one.
        """
        due = now + _PATIENCE_S[job.call.work_class]
        token_s = self._admission.seconds(1)
        queued = []
        for index, sequence in enumerate(job.sequences):
            if sequence is not None:
                one = QueuedSequence(job, index, sequence, min(job.call.deadline, due))
                queued.append(one)
                due += one.tokens * token_s
        return queued

    def cancel(self, job: Job) -> None:
        """Takes a job out of the queue, for good; a lane ends what it runs. From any thread."""
        with self._changed:
            job.cancelled = True
            for one in job.queued:
                self._queue.remove(one)

    def run_when_idle(self, batch: PaddedBatch) -> float:
        """Runs a batch of nobody's while nothing else runs or waits. Blocks.

        Returns:
            The seconds it took; work that came meanwhile may have run beside it.

        Raises:
            ShuttingDownError: The scheduler is closed.
            BackendError: The run failed.
        """
        with self._changed:
            self._idle.wait_for(lambda: self._closed or not (self._busy or len(self._queue)))
            if self._closed:
                raise errors.ShuttingDownError("the server is about to stop")
            self._take_lane(WorkClass.BULK)
        started = time.perf_counter()
        try:
            self._backend.run(batch)
            return time.perf_counter() - started
        finally:
            with self._changed:
                self._give_lane_back(WorkClass.BULK)

    def close(self) -> None:
        """Stops the lanes after the batches that they run, and fails what is left. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._idle.notify_all()
        until = time.monotonic() + _LANE_END_S_MAX
        for lane in self._lanes:
            lane.join(max(until - time.monotonic(), 0))
            if lane.is_alive():
                _logger.warning("a run does not end", extra={"model": self._model})
        left: list[Row] = list(self._prepared.rows) if self._prepared else []
        self._prepared = None
        while batch := self._queue.pop_batch(time.monotonic()):
            left += batch
        stopped = errors.ShuttingDownError("the server stopped before this was run")
        self._deliver_soon(address_failure(left, stopped))

    def deliver(
        self, job: Job, failures: Iterable[tuple[Sequence[int], errors.EngineError]]
    ) -> None:
        """Hands failures to a job's sink on the event loop, all at once. From any thread."""
        self._deliver_soon([Delivery(job, indices, 0, error) for indices, error in failures])

    @property
    def _busy(self) -> int:
        return sum(self._running.values())

    def _run_lane(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._run(batch)

    def _next_batch(self) -> LaidOut | None:
        """Waits for a lane and a batch for it, and takes both; None when it is time to stop.

        While no lane is free it lays out the batch that will come next, if that is full: one
        that is not may still be joined by others.
        """
        while True:
            with self._changed:
                while not self._closed:
                    if self._busy < self._backend.lanes:
                        batch = self._choose()
                        if batch is not None:
                            self._take_lane(batch.work_class)
                            if len(self._queue):
                                self._changed.notify()
                            return batch
                    elif not (self._prepared or self._preparing) and self._queue.is_ample():
                        rows = self._queue.pop_batch(time.monotonic())
                        self._preparing = True
                        break
                    self._changed.wait()
                else:
                    return None
            prepared = self._runner.lay_out(rows)
            with self._changed:
                self._prepared, self._preparing = prepared, False

    def _choose(self) -> LaidOut | None:
        """Takes the batch that is to run now, if there is one that may."""
        now = time.monotonic()
        # Interactive calls find a lane free as long as they are to be expected.
        bulk_lanes = max(self._backend.lanes - self._queue.is_shared(now), 1)
        may_be_bulk = self._running[WorkClass.BULK] < bulk_lanes
        prepared = self._prepared
        if prepared is not None:
            waits = self._queue.waiting(WorkClass.INTERACTIVE) and not self._queue.is_bulk_due()
            if prepared.work_class is WorkClass.INTERACTIVE or (may_be_bulk and not waits):
                self._prepared = None
                return prepared
        rows = self._queue.pop_batch(now, bulk=may_be_bulk and prepared is None)
        return LaidOut(rows, None) if rows else None

    def _take_lane(self, work_class: WorkClass) -> None:
        if not self._busy:
            self._busy_since = time.perf_counter()
        self._running[work_class] += 1

    def _give_lane_back(self, work_class: WorkClass) -> float:
        """Returns how long lanes were busy since one was last given back, in seconds."""
        self._running[work_class] -= 1
        now = time.perf_counter()
        elapsed_s, self._busy_since = now - self._busy_since, now
        if not (self._busy or len(self._queue) or self._prepared):
            self._idle.notify()
        self._changed.notify()
        return elapsed_s

    def _run(self, batch: LaidOut) -> None:
        """Runs a batch on the lane that was taken for it, and gives the lane back."""
        work_class = batch.work_class
        batch = self._drop_unwanted(batch)
        started_ns = time.time_ns()
        with self._changed:
            self._in_flight.update((row[0].key, row) for row in batch.rows)
        outcomes = self._runner.run(batch) if batch.rows else []
        with self._changed:
            # From here on nothing joins these rows.
            for row in batch.rows:
                del self._in_flight[row[0].key]
            elapsed_s = self._give_lane_back(work_class)
        if batch.rows:
            span_ns = (started_ns, time.time_ns())
            self._deliver_soon(self._runner.address(outcomes))
            report = self._reporter.report(batch, outcomes, span_ns)
            if not report.error:
                # A batch of its own costs something: else small ones would pass for slow ones.
                tokens = report.tokens + report.shared_tokens + self.budget.overhead_tokens
                self._admission.drain_rate.add(tokens, elapsed_s)

    def _drop_unwanted(self, batch: LaidOut) -> LaidOut:
        """Leaves out rows that nobody waits for, and tells those who waited too long."""
        now = time.monotonic()
        wanted: list[Row] = []
        late: list[Row] = []
        for row in batch.rows:
            if any(one.is_wanted(now) for one in row):
                wanted.append(row)
            else:
                late.append([one for one in row if not one.job.cancelled])
        if len(wanted) == len(batch.rows):
            return batch
        expired = errors.DeadlineExpiredError("the deadline passed in the queue")
        self._deliver_soon(address_failure(late, expired))
        return LaidOut(wanted, None)

    def _deliver_soon(self, deliveries: list[Delivery]) -> None:
        # Once the loop is closed nobody waits for results.
        if deliveries and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hand_over, deliveries)
