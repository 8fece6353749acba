"""Reports every batch to observers, such as metrics and traces."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedgrpc.engine.scheduling.delivery import BatchResult
from embedgrpc.engine.scheduling.dispatch import Batch
from embedgrpc.engine.work import Job
from embedgrpc.engine.work_class import WorkClass

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobStart:
    """How long a job took until its first batch began.

    Attributes:
        work_class: Its class, which may differ from the batch's.
        tokenize_s: From its arrival until its texts were tokenized.
        queue_s: From then until the batch began.
        trace: The trace of its call; opaque here.
    """

    work_class: WorkClass
    tokenize_s: float
    queue_s: float
    trace: object | None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch ran and how it ended.

    Attributes:
        model: Id of the model.
        work_class: The class of the sequence that it was built around.
        started_ns: When the backend began, in nanoseconds of `time.time_ns`.
        finished_ns: When it finished.
        sequences: Number of sequences that ran.
        shared: Number of further sequences, equal to those, that got the same results.
        tokens: Tokens of the sequences that ran.
        shared_tokens: Tokens of the others.
        padded_tokens: Tokens computed, padding included.
        failed_sequences: Number of sequences that ran and failed.
        traces: The traces of its calls.
        error: The reason if all failed; empty otherwise.
        lengths: Tokens of each sequence of callers, with those that shared a result.
        starts: The jobs of callers whose first batch it was.
    """

    model: str
    work_class: WorkClass
    started_ns: int
    finished_ns: int
    sequences: int
    shared: int
    tokens: int
    shared_tokens: int
    padded_tokens: int
    failed_sequences: int
    traces: Sequence[object]
    error: str
    lengths: Sequence[int] = ()
    starts: Sequence[JobStart] = ()


class BatchObserver(Protocol):
    """Receives a report of every batch, on a lane's thread."""

    def batch_finished(self, report: BatchReport) -> None:
        """Receive the report. Must neither block nor raise."""
        ...


class BatchReporter:
    """Reports the batches of one model to its observers."""

    def __init__(self, model: str, observers: Iterable[BatchObserver]) -> None:
        self._model = model
        self._observers = tuple(observers)

    def report(
        self,
        batch: Batch,
        results: Sequence[BatchResult],
        span_ns: tuple[int, int],
    ) -> BatchReport:
        """Report a batch to the observers, and return the report."""
        queued = [one for entry in batch.entries for one in entry]
        tokens = sum(entry[0].tokens for entry in batch.entries)
        failures = [result for result in results if result.error is not None]
        failed = sum(len(result.items) for result in failures)
        error = failures[0].error if failed == len(batch.entries) else None
        # By identity, because traces need not be hashable.
        traces = {id(one.job.call): one.job.call.trace for one in queued if one.job.call.trace}
        report = BatchReport(
            model=self._model,
            work_class=batch.work_class,
            started_ns=span_ns[0],
            finished_ns=span_ns[1],
            sequences=len(batch.entries),
            shared=len(queued) - len(batch.entries),
            tokens=tokens,
            shared_tokens=sum(one.tokens for one in queued) - tokens,
            padded_tokens=len(batch.entries) * max(entry[0].tokens for entry in batch.entries),
            failed_sequences=failed,
            traces=tuple(traces.values()),
            error=error.reason.value if error else "",
            # Health checks are the server's own.
            lengths=[one.tokens for one in queued if not one.job.reservation.is_probe],
            starts=[
                _start(job)
                for job in {one.job: None for one in queued}
                if job.times.starts() and not job.reservation.is_probe
            ],
        )
        for observer in self._observers:
            try:
                observer.batch_finished(report)
            except Exception:
                _logger.exception("fault in an observer", extra={"model": self._model})
        return report


def _start(job: Job) -> JobStart:
    times = job.times
    # The clock may be set meanwhile.
    return JobStart(
        work_class=job.call.work_class,
        tokenize_s=max(times.tokenized_ns - times.arrived_ns, 0) / 1e9,
        queue_s=max(times.began_ns - times.tokenized_ns, 0) / 1e9,
        trace=job.call.trace,
    )
