"""Counts what was run, and says so when the server stops."""

import logging
import threading
from dataclasses import asdict, dataclass

from embedgrpc.engine.scheduler import BatchReport

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Totals:
    batches: int = 0
    failed_batches: int = 0
    sequences: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class BatchTotals:
    """Adds up the batches of each model; an observer of schedulers."""

    def __init__(self) -> None:
        # A model's lanes report from their own threads.
        self._lock = threading.Lock()
        self._by_model: dict[str, _Totals] = {}

    def batch_finished(self, report: BatchReport) -> None:
        """Takes the report of a batch."""
        with self._lock:
            totals = self._by_model.setdefault(report.model, _Totals())
            totals.batches += 1
            totals.failed_batches += bool(report.error)
            totals.sequences += report.sequences
            totals.tokens += report.tokens
            totals.padded_tokens += report.padded_tokens

    def log(self) -> None:
        """Writes a line per model that ran anything."""
        for model, totals in self._by_model.items():
            _logger.info("model totals", extra={"model": model, **asdict(totals)})
