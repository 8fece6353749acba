"""Models without weights, for tests of servers and their callers."""

import shutil
from pathlib import Path

# Logs "asleep" before it sleeps.
_PROGRAM = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "value").as_numpy()
            if value.min() < 0:
                print("asleep", flush=True)
                time.sleep(-int(value.min()) / 1000)
            doubled = pb_utils.Tensor("doubled", value * 2)
            responses.append(pb_utils.InferenceResponse(output_tensors=[doubled]))
        return responses
"""
_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "value" data_type: TYPE_INT64 dims: [ 1 ] }} ]
output [ {{ name: "doubled" data_type: TYPE_INT64 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

_SPELLING_PROGRAM = """
import numpy
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            points = [[ord(one) for one in text.decode()] for text in texts[:, 0]]
            rows = [[len(one), sum(one), one[0], one[-1]] for one in points]
            vectors = pb_utils.Tensor("sentence_embedding", numpy.array(rows, numpy.float32))
            responses.append(pb_utils.InferenceResponse(output_tensors=[vectors]))
        return responses
"""
_SPELLING_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "sentence_embedding" data_type: TYPE_FP32 dims: [ 4 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def write_doubling(repository: Path, name: str) -> None:
    """Add a model that doubles int64 [batch, 1]; for a negative value it sleeps that many ms."""
    _write(repository / name, _CONFIG.format(name=name), _PROGRAM)


def write_spelling(repository: Path, name: str) -> None:
    """Add a model that takes non-empty texts, and returns the vectors of `spell`."""
    _write(repository / name, _SPELLING_CONFIG.format(name=name), _SPELLING_PROGRAM)


# Each vector depends on the ids of its text and not on the padding. While the file `hold` is in the
# model's folder, the model logs "held" and waits; it logs "dropped" when a request is cancelled.
_EMBEDDING_PROGRAM = """
import pathlib
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.hold = pathlib.Path(args["model_repository"]) / "hold"

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if self.hold.exists():
            print("held", flush=True)
        while self.hold.exists():
            if request.is_cancelled():
                print("dropped", flush=True)
                gone = pb_utils.TritonError("dropped", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=gone)
            time.sleep(0.002)
        ids, mask = [
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("input_ids", "attention_mask")
        ]
        waves = np.sin((ids * mask)[:, :, None] * np.arange(1, {dimensions} + 1) * {scale}).sum(1)
        vectors = waves / np.linalg.norm(waves, axis=1, keepdims=True)
        tensor = pb_utils.Tensor("sentence_embedding", vectors.astype(np.float32))
        return pb_utils.InferenceResponse(output_tensors=[tensor])
"""
_EMBEDDING_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [ {{ name: "sentence_embedding" data_type: TYPE_FP32 dims: [ {dimensions} ] }} ]
instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
parameters {{ key: "embedgrpc_source" value: {{ string_value: "{source}" }} }}
"""


def write_embedding(
    repository: Path,
    name: str,
    *,
    source: Path,
    dimensions: int = 32,
    scale: float = 0.37,
    instances: int = 1,
) -> Path:
    """Add or rewrite a model that embeds tokens of another model's tokenizer.

    Args:
        repository: The folder of models.
        name: The model's name.
        source: The folder of the other model.
        dimensions: The length of a vector.
        scale: A factor; another one makes other vectors.
        instances: The number of requests that it runs at once.

    Returns:
        The file that makes it wait while it exists.
    """
    folder = repository / name
    config = _EMBEDDING_CONFIG.format(
        name=name, source=source, dimensions=dimensions, scale=scale, instances=instances
    )
    _write(folder, config, _EMBEDDING_PROGRAM.format(dimensions=dimensions, scale=scale))
    return folder / "hold"


def _write(folder: Path, config: str, program: str) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1/model.py").write_text(program)
    # Bytecode of a program of the same length, written in the same second, would be taken for it.
    shutil.rmtree(folder / "1/__pycache__", ignore_errors=True)
