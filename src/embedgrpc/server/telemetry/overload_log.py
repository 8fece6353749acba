"""Logs when a model becomes overloaded, and when that is over."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ServedModel

_logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5
# An overload that pauses for a shorter time goes on, so that one that comes and goes is one.
_CALM_S = 10.0
_REFUSALS = (
    SequenceOutcome.REFUSED_FULL,
    SequenceOutcome.REFUSED_LATE,
    SequenceOutcome.REFUSED_OVERLOADED,
)


@dataclass(slots=True)
class _Overload:
    """An overload of a model that is not over."""

    began: float
    last_seen: float
    refused_before: int


class OverloadLog:
    """Looks at the models twice a second.

    Args:
        catalog: The models.
        clock: Returns seconds.
    """

    def __init__(self, catalog: Catalog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._clock = clock
        self._overloads: dict[ServedModel, _Overload] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Log what has changed."""
        now = self._clock()
        for model in self._catalog:
            loaded = model.loaded
            if loaded is not None and any(one.overloaded for one in loaded.admissions):
                self._see(model, loaded, now)
        for model, overload in list(self._overloads.items()):
            if now - overload.last_seen >= _CALM_S or model.loaded is None:
                del self._overloads[model]
                self._end(model, overload)

    def _see(self, model: ServedModel, loaded: LoadedModel, now: float) -> None:
        known = self._overloads.get(model)
        if known is not None:
            known.last_seen = now
            return
        self._overloads[model] = _Overload(now, now, _refused(loaded))
        ledgers = [one.ledger for one in loaded.admissions]
        tokens = sum(one.tokens(WorkClass.INTERACTIVE) for one in ledgers)
        _logger.warning(
            "overload began",
            extra={
                "model": model.id,
                "queued_inputs": sum(one.inputs(WorkClass.INTERACTIVE) for one in ledgers),
                "queued_tokens": tokens,
                "queue_s": round(
                    sum(
                        one.ledger.tokens(WorkClass.INTERACTIVE) * one.drain_rate.token_s
                        for one in loaded.admissions
                    ),
                    2,
                ),
            },
        )

    def _end(self, model: ServedModel, overload: _Overload) -> None:
        refused = _refused(model.loaded) - overload.refused_before if model.loaded else 0
        _logger.warning(
            "overload ended",
            extra={
                "model": model.id,
                "seconds": round(overload.last_seen - overload.began, 1),
                "refused_inputs": refused,
            },
        )


def _refused(loaded: LoadedModel) -> int:
    """Return how many interactive inputs were refused since the model was loaded."""
    return sum(
        one.ledger.outcome_counts[WorkClass.INTERACTIVE, outcome]
        for one in loaded.admissions
        for outcome in _REFUSALS
    )
