"""Counts how long texts wait and run, how long they are, and how much of a batch is padding."""

import threading
from collections.abc import Iterator, Mapping

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.telemetry.histogram import SECONDS, SHARES, TOKENS, Histogram
from embedgrpc.server.telemetry.metrics import Reading


class _ModelTimes:
    """The histograms of one model."""

    def __init__(self) -> None:
        self.tokenize = {one: Histogram(SECONDS) for one in WorkClass}
        self.queue = {one: Histogram(SECONDS) for one in WorkClass}
        self.batch = {one: Histogram(SECONDS) for one in WorkClass}
        self.tokens = Histogram(TOKENS)
        self.padding = Histogram(SHARES)

    def add(self, report: BatchReport) -> None:
        each = report.work_class
        trace = report.traces[0] if report.traces else None
        self.batch[each].add(max(report.finished_ns - report.started_ns, 0) / 1e9, trace)
        self.padding.add(1 - report.tokens / max(report.padded_tokens, 1))
        for length in report.lengths:
            self.tokens.add(length)
        for start in report.starts:
            self.tokenize[start.work_class].add(start.tokenize_s, start.trace)
            self.queue[start.work_class].add(start.queue_s, start.trace)

    def read(self, model: str) -> Iterator[Reading]:
        for name, histograms in (
            ("embedgrpc.tokenize.duration", self.tokenize),
            ("embedgrpc.queue.duration", self.queue),
            ("embedgrpc.batch.duration", self.batch),
        ):
            for each, histogram in histograms.items():
                attributes: Mapping[str, str] = {"model": model, "work_class": each.name.lower()}
                yield Reading.of(name, histogram, attributes)
        yield Reading.of("embedgrpc.sequence.tokens", self.tokens, {"model": model})
        yield Reading.of("embedgrpc.batch.padding", self.padding, {"model": model})


class WorkTimes:
    """The histograms of all models; an observer of schedulers.

    Args:
        catalog: The models.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # The lanes of a model report from their own threads.
        self._lock = threading.Lock()
        self._by_model: dict[str, _ModelTimes] = {}

    def batch_finished(self, report: BatchReport) -> None:
        """Add the report of a batch."""
        with self._lock:
            self._of(report.model).add(report)

    def read(self) -> Iterator[Reading]:
        """Return the histograms, and the work that waits. From any thread."""
        for model in self._catalog:
            with self._lock:
                times = self._of(model.id)
            yield from times.read(model.id)
            admissions = model.loaded.admissions if model.loaded else ()
            for each in WorkClass:
                work_s = sum(one.ledger.tokens(each) * one.drain_rate.token_s for one in admissions)
                attributes = {"model": model.id, "work_class": each.name.lower()}
                yield Reading("embedgrpc.queue.work", work_s, attributes)

    def _of(self, model: str) -> _ModelTimes:
        found = self._by_model.get(model)
        if found is None:
            found = self._by_model[model] = _ModelTimes()
        return found
