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


def write_doubling(repository: Path, name: str) -> None:
    """Adds a model that doubles int64 [batch, 1]; of a value below 0 it sleeps as many ms."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_CONFIG.format(name=name))
    (folder / "1/model.py").write_text(_PROGRAM)
