"""Tells whoever wants to know what became of each batch."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedgrpc.engine.scheduling.delivery import BatchResult
from embedgrpc.engine.scheduling.dispatch import Batch
from embedgrpc.engine.work_class import WorkClass

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of one batch.

    Attributes:
        model: Id of the model.
        work_class: The class of the sequence that it was built around.
        started_ns: When the backend began, on the clock of `time.time_ns`.
        finished_ns: When it was done.
        sequences: How many sequences were run.
        shared: How many more, equal to those, got the same answers.
        tokens: How many tokens those had that were run.
        shared_tokens: How many the others had.
        padded_tokens: How many tokens were computed.
        failed_sequences: How many of those that were run failed.
        traces: The traces of the calls that rode in it.
        error: The reason of the failure where all failed; empty otherwise.
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


class BatchObserver(Protocol):
    """Is told of every batch, on the lane's thread."""

    def batch_finished(self, report: BatchReport) -> None:
        """Takes the report. Must neither block nor raise."""
        ...


class BatchReporter:
    """Reports the batches of one model.

    Args:
        model: Id of the model.
        observers: Are told.
    """

    def __init__(self, model: str, observers: Iterable[BatchObserver]) -> None:
        self._model = model
        self._observers = tuple(observers)

    def report(
        self,
        batch: Batch,
        results: Sequence[BatchResult],
        span_ns: tuple[int, int],
    ) -> BatchReport:
        """Tells the observers of a batch; returns what they were told."""
        riders = [one for entry in batch.entries for one in entry]
        tokens = sum(entry[0].tokens for entry in batch.entries)
        failures = [result for result in results if result.error is not None]
        failed = sum(len(result.items) for result in failures)
        error = failures[0].error if failed == len(batch.entries) else None
        # By identity: what is opaque here need not be hashable.
        traces = {id(one.job.call): one.job.call.trace for one in riders if one.job.call.trace}
        report = BatchReport(
            model=self._model,
            work_class=batch.work_class,
            started_ns=span_ns[0],
            finished_ns=span_ns[1],
            sequences=len(batch.entries),
            shared=len(riders) - len(batch.entries),
            tokens=tokens,
            shared_tokens=sum(one.tokens for one in riders) - tokens,
            padded_tokens=len(batch.entries) * max(entry[0].tokens for entry in batch.entries),
            failed_sequences=failed,
            traces=tuple(traces.values()),
            error=error.reason.value if error else "",
        )
        for observer in self._observers:
            try:
                observer.batch_finished(report)
            except Exception:
                _logger.exception("fault in an observer", extra={"model": self._model})
        return report
