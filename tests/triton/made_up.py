"""Models without weights, for tests of what happens between a server and its callers."""

from pathlib import Path

# Writes "asleep" before it sleeps.
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
    """Adds a model that doubles int64 [batch, 1]; of a value below 0 it sleeps as many ms."""
    _write(repository / name, _CONFIG.format(name=name), _PROGRAM)


def write_spelling(repository: Path, name: str) -> None:
    """Adds a model that takes texts, none empty, and makes of each what `spell` does."""
    _write(repository / name, _SPELLING_CONFIG.format(name=name), _SPELLING_PROGRAM)


def _write(folder: Path, config: str, program: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1/model.py").write_text(program)
