"""Measures what batches of the models that are served cost here, and sets their budgets."""

import logging
import time
from collections.abc import Iterable
from functools import partial

import numpy as np

from embedgrpc.backends.base import BackendError, PaddedBatch
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.scheduling import calibration
from embedgrpc.engine.scheduling.calibration import CostModel
from embedgrpc.models.graphs.outputs import POOLED_EMBEDDING
from embedgrpc.server.loading.catalog import LoadedModel, Sample, ServedModel
from embedgrpc.server.loading.daemon_threads import run_in_daemon_thread
from embedgrpc.server.loading.prepared_model import PreparedModel
from embedgrpc.server.settings.settings import Settings

_SAMPLE_TEXT = "Batches of this text are run to see how long they take."

_logger = logging.getLogger(__name__)


async def calibrate_all(models: Iterable[ServedModel], settings: Settings) -> None:
    """Measures what batches cost, one model after the other, while they are served."""
    for model in models:
        loaded = model.loaded
        if loaded is None or loaded.sample is None:
            continue
        began = time.perf_counter()
        try:
            cost = await run_in_daemon_thread(partial(_calibrate, loaded, loaded.sample, settings))
        except (BackendError, EngineError) as error:
            # It is served with what holds for most models.
            _logger.warning(
                "batches not measured", extra={"model": model.id, "problem": str(error)}
            )
            continue
        budget = loaded.scheduler.budget
        _logger.info(
            "batches measured",
            extra={
                "model": model.id,
                "batch_ms": round(cost.batch_s * 1e3, 3),
                "token_us": round(cost.token_s * 1e6, 2),
                "batch_tokens": budget.tokens,
                "shared_batch_tokens": budget.shared_tokens,
                "seconds": round(time.perf_counter() - began, 2),
            },
        )


def make_sample(prepared: PreparedModel, sequences: int, length: int) -> PaddedBatch:
    """Makes a batch of a given size, of a text that is none of a caller's."""
    ids = np.resize(prepared.tokenizer.encode([_SAMPLE_TEXT])[0], (sequences, length))
    outputs = (one for one in prepared.graph.outputs if one != POOLED_EMBEDDING)
    return PaddedBatch(ids, np.ones_like(ids), np.zeros_like(ids), (next(outputs),))


def _calibrate(loaded: LoadedModel, sample: Sample, settings: Settings) -> CostModel:
    """Measures what batches of a model cost, and sets their budget. Blocks while it is in use.

    Args:
        loaded: The model.
        sample: Makes its batches.
        settings: How.

    Returns:
        What they cost.

    Raises:
        ShuttingDownError: The server is about to stop.
        BackendError: A run failed.
    """
    cost = calibration.calibrate(
        lambda sequences, length: loaded.scheduler.run_when_idle(sample(sequences, length)),
        max_tokens=loaded.properties.max_tokens,
        limit_s=settings.calibration_s,
    )
    budget = cost.budget(
        tokens=settings.batch_tokens,
        sequences=settings.batch_sequences,
        bulk_batch_s=settings.bulk_batch_ms / 1000,
    )
    loaded.scheduler.set_budget(budget)
    return cost
