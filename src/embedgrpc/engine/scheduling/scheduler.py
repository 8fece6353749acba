"""Keeps every lane of a backend busy with the best batch available.

A lane runs one batch at a time. A free lane takes a batch at once, however small; while it runs,
work accumulates. There is no timer. The thread that finishes a batch begins the next one. One
thread more than there are lanes delivers results while all lanes run. Results reach the event loop
with one wake-up per batch, however many calls they belong to.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from embedgrpc.backends.base import Backend, RunContext
from embedgrpc.engine import errors
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.cancellation import RunCancellations, split_joined
from embedgrpc.engine.scheduling.deduplication import RunningEntries
from embedgrpc.engine.scheduling.delivery import (
    BatchResult,
    Delivery,
    address_failure,
    deliver_all,
)
from embedgrpc.engine.scheduling.dispatch import Batch, Dispatcher
from embedgrpc.engine.scheduling.execution import BatchRunner
from embedgrpc.engine.scheduling.reports import BatchObserver, BatchReporter
from embedgrpc.engine.work import BatchEntry, Job, QueuedSequence, due_times
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.machine.thread_priority import lower_priority

_logger = logging.getLogger(__name__)

# However small batches are, the queue has room for what thirty callers send at once.
_QUEUED_BATCH_TOKENS_MIN = 512
# How long closing waits for a running batch. Its thread ends with the process at the latest.
_LANE_END_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class _FinishedBatch:
    """A batch that ran and is not delivered yet.

    Attributes:
        batch: The batch.
        results: The results of its entries.
        span_ns: Its start and end, in nanoseconds of `time.time_ns`.
        elapsed_s: Time that lanes were busy since the last batch ended.
    """

    batch: Batch
    results: Sequence[BatchResult]
    span_ns: tuple[int, int]
    elapsed_s: float


class Scheduler:
    """Runs the sequences of one model in batches.

    Args:
        model: Id of the model, for reports.
        backend: Runs the batches.
        budget: Limits of a batch.
        bulk_batch_s: Maximum duration of a bulk batch while interactive calls arrive, in seconds.
        weights: Shares of callers relative to others.
        pad_token_id: The padding token.
        pad_left: Whether padding comes before the tokens.
        admission: Learns the drain rate.
        observers: Receive a report of every batch.
        loop: The event loop on which results are delivered.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: Backend,
        budget: BatchBudget,
        bulk_batch_s: float,
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
        self._dispatcher = Dispatcher(
            budget,
            weights or {},
            bulk_batch_s=bulk_batch_s,
            lanes=backend.lanes,
            lanes_compete=backend.lanes_compete,
            bulk_gives_way=backend.can_give_way,
        )
        # What runs in the time of one batch.
        tokens = max(budget.tokens, _QUEUED_BATCH_TOKENS_MIN)
        admission.set_batch_tokens(backend.parallelism * tokens)
        self._changed = threading.Condition()
        self._closed = False
        # Batches that ran and are not delivered yet.
        self._finished: deque[_FinishedBatch] = deque()
        self._running_entries = RunningEntries()
        self._cancellations = RunCancellations()
        # The time of the lanes is accounted for up to here.
        self._busy_since = 0.0
        self._lanes = [
            threading.Thread(target=self._run_thread, name=f"lane-{model}-{lane}", daemon=True)
            for lane in range(self._dispatcher.batches_max + 1)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def budget(self) -> BatchBudget:
        """The limits of a batch."""
        return self._dispatcher.queue.budget

    def submit(self, *jobs: Job) -> None:
        """Queue the sequences of some jobs, unless they were cancelled. From any thread.

        A sequence that equals a running one waits for that one's result.

        Raises:
            ShuttingDownError: The scheduler is closed.
        """
        now = time.monotonic()
        token_s = self._admission.seconds(1)
        queued = [self._queue_up(job, now, token_s) for job in jobs]
        with self._changed:
            if self._closed:
                raise errors.ShuttingDownError("the server is stopping")
            for job, entries in zip(jobs, queued, strict=True):
                if job.cancelled:
                    continue
                job.queued = entries
                for one in entries:
                    if not self._running_entries.join(one):
                        self._dispatcher.push(one, now)
            self._wake_thread(now)

    def _queue_up(self, job: Job, now: float, token_s: float) -> list[QueuedSequence]:
        """Make the queue entries of a job, with the times when they are due."""
        left = [(index, one) for index, one in enumerate(job.sequences) if one is not None]
        lengths = [len(one.input_ids) for _, one in left]
        due = due_times(job.call, lengths, now=now, token_s=token_s)
        return [
            QueuedSequence(job, index, one, urgency)
            for (index, one), urgency in zip(left, due, strict=True)
        ]

    def cancel(self, job: Job) -> None:
        """Cancel a job and remove it from the queue. From any thread.

        Runs that are for this job alone are cancelled where the backend supports it.
        """
        with self._changed:
            job.cancelled = True
            for one in job.queued:
                self._dispatcher.queue.remove(one)
            # The entries refer to the job: break the cycle without the garbage collector.
            job.queued = ()
            abandoned = self._cancellations.abandoned_by(job)
        for cancellation in abandoned:
            cancellation.cancel()

    def close(self) -> None:
        """Stop the lanes after the batches they run, and fail what is queued. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + _LANE_END_S_MAX
        for lane in self._lanes:
            lane.join(max(until - time.monotonic(), 0))
        if any(lane.is_alive() for lane in self._lanes):
            _logger.warning("a run does not end", extra={"model": self._model})
        left = self._dispatcher.drain(time.monotonic())
        stopped = errors.ShuttingDownError("the server stopped before this was run")
        self._deliver_soon(address_failure(left, stopped))

    def deliver(
        self, job: Job, failures: Iterable[tuple[Sequence[int], errors.EngineError]]
    ) -> None:
        """Deliver failures to a job's sink on the event loop, all at once. From any thread."""
        self._deliver_soon([Delivery(job, indices, 0, error) for indices, error in failures])

    def _run_thread(self) -> None:
        lower_priority()
        while (task := self._next_task()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - a lane must survive any fault
                fault = errors.EngineError.fault()
                _logger.error(  # noqa: TRY400 - its message may contain tokens
                    "fault in a lane", extra={"model": self._model, **fault.log_fields(error)}
                )

    def _next_task(self) -> Callable[[], None] | None:
        """Wait for something to do; return None when it is time to stop.

        Keeping the lanes busy comes first, then delivering results.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                task: Callable[[], None] | None = None
                if not self._closed and (begun := self._begin(now)):
                    task = partial(self._run, *begun)
                elif self._finished:
                    task = partial(self._deliver_results, self._finished.popleft())
                elif self._closed:
                    return None
                if task is not None:
                    self._wake_thread(now)
                    return task
                self._changed.wait()

    def _wake_thread(self, now: float) -> None:
        """Wake one thread if there is something to do: needless wake-ups cost CPU time."""
        if self._finished or self._dispatcher.can_begin(now):
            self._changed.notify()

    def _begin(self, now: float) -> tuple[Batch, RunContext, list[BatchEntry]] | None:
        """Take a lane and a batch for it; None when there is none.

        Returns:
            The batch, its context, and the entries whose deadlines have passed.
        """
        if not self._dispatcher.busy:
            self._busy_since = time.perf_counter()
        self._dispatcher.bulk_gives_way = self._backend.can_give_way
        batch = self._dispatcher.begin(now)
        if batch is None:
            return None
        wanted, late = self._running_entries.begin(batch.entries, now, gives_way=batch.gives_way)
        if len(wanted) < len(batch.entries):
            batch = replace(batch, entries=wanted)
        return batch, self._cancellations.begin(wanted, gives_way=batch.gives_way), late

    def _free_lane(self, work_class: WorkClass) -> float:
        """Free a lane; return how long lanes were busy since one was last freed, in seconds."""
        self._dispatcher.finish(work_class)
        now = time.perf_counter()
        elapsed_s, self._busy_since = now - self._busy_since, now
        return elapsed_s

    def _run(self, batch: Batch, context: RunContext, late: list[BatchEntry]) -> None:
        """Run a batch on the lane taken for it, and free the lane."""
        if late:
            expired = errors.DeadlineExpiredError("the deadline passed in the queue")
            self._deliver_soon(address_failure(late, expired))
        started_ns = time.time_ns()
        results = self._runner.run(batch, context) if batch.entries else []
        with self._changed:
            began_for = self._cancellations.end(context)
            self._running_entries.end(batch.entries)
            results, joined = split_joined(results, began_for, time.monotonic())
            for one in joined:
                self._dispatcher.push(one, time.monotonic())
            elapsed_s = self._free_lane(batch.work_class)
            if batch.entries:
                span_ns = (started_ns, time.time_ns())
                self._finished.append(_FinishedBatch(batch, results, span_ns, elapsed_s))

    def _deliver_results(self, done: "_FinishedBatch") -> None:
        """Deliver the results of a batch, and report it."""
        deliveries = self._runner.address(done.results)
        for delivery in deliveries:
            delivery.job.times.ran(*done.span_ns)
        self._deliver_soon(deliveries)
        report = self._reporter.report(done.batch, done.results, done.span_ns)
        if not report.error:
            # The overhead counts too: otherwise small batches would look slow.
            tokens = report.tokens + report.shared_tokens + self.budget.overhead_tokens
            self._admission.drain_rate.add(tokens, done.elapsed_s)
            seconds = (report.finished_ns - report.started_ns) / 1e9
            with self._changed:
                self._dispatcher.learn(report.work_class, report.padded_tokens, seconds)

    def _deliver_soon(self, deliveries: list[Delivery]) -> None:
        # Once the loop is closed, results are no longer wanted.
        if deliveries and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver_all, deliveries)
