"""Counts batches, and reads the outcomes of sequences: for metrics, and for the log at the end."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from embedgrpc.engine.admission.ledger import Ledger
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.loading.catalog import Catalog, ServedModel
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
        # The outcomes of models that were closed, so that those of their names only grow.
        self._closed: dict[str, Counter[tuple[WorkClass, SequenceOutcome]]] = {}

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

    def close(self, model: ServedModel) -> None:
        """Keep the outcomes of a model that is about to be closed."""
        closed = self._closed.get(model.id, Counter()).copy()
        for ledger in _ledgers([model]):
            closed.update(ledger.outcome_counts)
        self._closed[model.id] = closed

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric, zeros included. From any thread."""
        for name, work_class, fate, count in self._outcomes():
            attributes = {"model": name, "work_class": work_class, "fate": fate}
            yield Reading("embedgrpc.sequences", count, attributes)
        for name, models in self._by_id():
            ledgers = _ledgers(models)
            for each in WorkClass:
                attributes = {"model": name, "work_class": each.name.lower()}
                inputs = sum(ledger.inputs(each) for ledger in ledgers)
                tokens = sum(ledger.tokens(each) for ledger in ledgers)
                yield Reading("embedgrpc.sequences.admitted", inputs, attributes)
                yield Reading("embedgrpc.tokens.admitted", tokens, attributes)
            totals = self._by_model.get(name) or _Totals()
            yield Reading("embedgrpc.batches", totals.batches, {"model": name})
            for key, count in (
                ("sequences", totals.sequences),
                ("shared_sequences", totals.shared_sequences),
                ("tokens", totals.tokens),
                ("padded_tokens", totals.padded_tokens),
            ):
                yield Reading(f"embedgrpc.batch.{key}", count, {"model": name})

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
        for name, models in self._by_id():
            counts = self._closed.get(name, Counter()).copy()
            for ledger in _ledgers(models):
                counts.update(ledger.outcome_counts.copy())
            for work_class in WorkClass:
                for outcome in SequenceOutcome:
                    count = counts[work_class, outcome]
                    yield name, work_class.name.lower(), outcome.value, count

    def _by_id(self) -> Iterable[tuple[str, list[ServedModel]]]:
        """Return the models that are called, by their ids; one may take the place of another."""
        by_id: dict[str, list[ServedModel]] = {}
        for model in (*self._catalog, *self._catalog.draining):
            by_id.setdefault(model.id, []).append(model)
        return by_id.items()


def _ledgers(models: Iterable[ServedModel]) -> list[Ledger]:
    loaded = [one.loaded for one in models]
    return [admission.ledger for one in loaded if one for admission in one.admissions]
