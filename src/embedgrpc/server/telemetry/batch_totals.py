"""Counts batches, and reads the outcomes of sequences: for metrics, and for the log at the end."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Totals:
    batches: int = 0
    failed_batches: int = 0
    sequences: int = 0
    shared_sequences: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class BatchTotals:
    """Totals of each model; an observer of schedulers.

    Args:
        catalog: The models; their ledgers count the outcomes of sequences.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # The lanes of a model report from their own threads.
        self._lock = threading.Lock()
        self._by_model: dict[str, _Totals] = {}

    def batch_finished(self, report: BatchReport) -> None:
        """Add the report of a batch."""
        with self._lock:
            totals = self._by_model.setdefault(report.model, _Totals())
            totals.batches += 1
            totals.failed_batches += bool(report.error)
            totals.sequences += report.sequences
            totals.shared_sequences += report.shared
            totals.tokens += report.tokens
            totals.padded_tokens += report.padded_tokens

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric, zeros included. From any thread."""
        for name, work_class, fate, count in self._outcomes():
            attributes = {"model": name, "work_class": work_class, "fate": fate}
            yield Reading("embedgrpc.sequences", count, attributes)
        for model in self._catalog:
            loaded = model.loaded
            ledgers = [one.ledger for one in loaded.admissions] if loaded else []
            for each in WorkClass:
                attributes = {"model": model.id, "work_class": each.name.lower()}
                inputs = sum(ledger.inputs(each) for ledger in ledgers)
                tokens = sum(ledger.tokens(each) for ledger in ledgers)
                yield Reading("embedgrpc.sequences.admitted", inputs, attributes)
                yield Reading("embedgrpc.tokens.admitted", tokens, attributes)
            totals = self._by_model.get(model.id) or _Totals()
            yield Reading("embedgrpc.batches", totals.batches, {"model": model.id})
            for key, count in (
                ("sequences", totals.sequences),
                ("shared_sequences", totals.shared_sequences),
                ("tokens", totals.tokens),
                ("padded_tokens", totals.padded_tokens),
            ):
                yield Reading(f"embedgrpc.batch.{key}", count, {"model": model.id})

    def log(self) -> None:
        """Log a line per model that ran batches, and one per work class with the outcomes."""
        for model, totals in self._by_model.items():
            _logger.info("model totals", extra={"model": model, **asdict(totals)})
        outcomes: dict[tuple[str, str], dict[str, int]] = {}
        for model, work_class, name, count in self._outcomes():
            if count:
                outcomes.setdefault((model, work_class), {})[name] = count
        for (model, work_class), counts in outcomes.items():
            _logger.info("fates", extra={"model": model, "work_class": work_class, **counts})

    def _outcomes(self) -> Iterator[tuple[str, str, str, int]]:
        """Return model, work class, outcome and number of sequences."""
        for model in self._catalog:
            counts: Counter[tuple[WorkClass, SequenceOutcome]] = Counter()
            for admission in model.loaded.admissions if model.loaded else ():
                counts.update(admission.ledger.outcome_counts.copy())
            for work_class in WorkClass:
                for outcome in SequenceOutcome:
                    count = counts[work_class, outcome]
                    yield model.id, work_class.name.lower(), outcome.value, count
