"""The cost of batches of the default model on this machine."""

import time

import numpy as np

from benchmarks.simulated_machine import CostModel
from embedgrpc.backends.base import PaddedBatch
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.server.loading.loading import open_onnx, prepare_model, served_models
from embedgrpc.server.settings.settings import Settings

# The best run counts: other programs may slow the others down.
_REPEATS = 20
_LENGTH = 64
_SEQUENCES = (1, 16)


def measure() -> CostModel:
    """Run small and large batches of the default model; draw a line through their best times."""
    settings = Settings()
    prepared = prepare_model(served_models(settings)[0], settings, open_onnx)

    def best_s(sequences: int) -> float:
        # The time does not depend on the ids.
        ids = np.full((sequences, _LENGTH), prepared.properties.pad_token_id, np.int64)
        batch = PaddedBatch(ids, np.ones_like(ids), np.zeros_like(ids), (SENTENCE_EMBEDDING,))
        taken = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            prepared.backend.run(batch)
            taken.append(time.perf_counter() - began)
        return min(taken)

    try:
        small_s, large_s = map(best_s, _SEQUENCES)
    finally:
        prepared.backend.close()
    small, large = (_LENGTH * sequences for sequences in _SEQUENCES)
    token_s = (large_s - small_s) / (large - small)
    return CostModel(max(small_s - token_s * small, 0.0), token_s)
