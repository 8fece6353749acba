"""What batches of the default model cost on this machine, as the server measures it."""

import time

import numpy as np

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.engine.scheduling.calibration import CostModel, calibrate
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.server.loading.loading import open_onnx, prepare_model, served_models
from embedgrpc.server.settings.settings import Settings

# Of a machine that others use, too, longer than the server takes for it.
_LIMIT_S = 3.0


def measure() -> CostModel:
    """Runs batches of growing size of the default model, for some seconds."""
    settings = Settings()
    prepared = prepare_model(served_models(settings)[0], settings, open_onnx)

    def run(sequences: int, length: int) -> float:
        # What the tokens are makes no difference to the time.
        ids = np.full((sequences, length), prepared.properties.pad_token_id, np.int64)
        batch = PaddedBatch(ids, np.ones_like(ids), np.zeros_like(ids), (SENTENCE_EMBEDDING,))
        began = time.perf_counter()
        prepared.backend.run(batch)
        return time.perf_counter() - began

    try:
        return calibrate(run, max_tokens=prepared.properties.max_tokens, limit_s=_LIMIT_S)
    finally:
        prepared.backend.close()
