"""Counts what ModelStatistics answers."""

import copy
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work import CallTimes

_MS_OF_NS = 1_000_000
_NS = 1_000_000_000


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Add one."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class ModelTotals:
    """Totals of a model.

    Attributes:
        last_ms: When its last batch ended, in milliseconds since 1970.
        inputs: Inputs that succeeded, through all doors.
        batches: Batches that succeeded.
        by_size: The batches by the number of their sequences.
        success: ModelInfer calls that succeeded.
        failure: Those that failed.
        tokenizing: The time until their texts were tokenized; that of the calls that succeeded, as
            the next two.
        queue: The time that they waited for a batch.
        running: The time of their batches.
        packing: What is left: reading the request and making the response.
    """

    last_ms: int = 0
    inputs: int = 0
    batches: int = 0
    by_size: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    success: Duration = field(default_factory=Duration)
    failure: Duration = field(default_factory=Duration)
    tokenizing: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    running: Duration = field(default_factory=Duration)
    packing: Duration = field(default_factory=Duration)


class InferenceStatistics:
    """Totals of each model; an observer of schedulers.

    Args:
        models: The ids of the models.
    """

    def __init__(self, models: Iterable[str]) -> None:
        # The lanes of a model report from their own threads.
        self._lock = threading.Lock()
        self._by_model = {model: ModelTotals() for model in models}

    def _totals(self, model: str) -> ModelTotals:
        # Models may come later.
        return self._by_model.setdefault(model, ModelTotals())

    def totals(self, model: str) -> ModelTotals:
        """Return the totals of a model until now."""
        with self._lock:
            return copy.deepcopy(self._totals(model))

    def batch_finished(self, report: BatchReport) -> None:
        """Add the report of a batch."""
        if report.error:
            return
        totals = self._totals(report.model)
        with self._lock:
            totals.last_ms = report.finished_ns // _MS_OF_NS
            totals.inputs += report.sequences + report.shared - report.failed_sequences
            totals.batches += 1
            totals.by_size[report.sequences].add(report.finished_ns - report.started_ns)

    def call_succeeded(self, model: str, began_ns: int, times: CallTimes) -> None:
        """Add a ModelInfer call.

        Args:
            model: The id of its model.
            began_ns: When it began, in nanoseconds of the monotonic clock.
            times: What its jobs took.
        """
        took_ns = time.monotonic_ns() - began_ns
        steps = [round(one * _NS) for one in (times.tokenize_s, times.queue_s, times.run_s)]
        totals = self._totals(model)
        totals.success.add(took_ns)
        for duration, ns in zip(
            (totals.tokenizing, totals.queue, totals.running), steps, strict=True
        ):
            duration.add(ns)
        # Two clocks may differ.
        totals.packing.add(max(took_ns - sum(steps), 0))

    def call_failed(self, model: str, began_ns: int) -> None:
        """Add a ModelInfer call that failed."""
        self._totals(model).failure.add(time.monotonic_ns() - began_ns)
