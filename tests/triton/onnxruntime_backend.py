"""Serves models of `backend: "onnxruntime"` from Triton's Python backend.

The environment of the tests lacks Triton's ONNX Runtime backend. This file replaces it, as
`model.py` in the folder `onnxruntime`: the same config.pbtxt and model.onnx work with both. It
supports no GPU and ignores execution accelerators.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of a model; Triton finds the class by this name."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Add nothing: the configuration must be complete."""
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph with the configured threads."""
        config = json.loads(args["model_config"])
        parameters = {
            key: value["string_value"] for key, value in config.get("parameters", {}).items()
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") == "1"
        folder = Path(args["model_repository"], args["model_version"])
        self._session = onnxruntime.InferenceSession(
            folder / (config.get("default_model_filename") or "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._inputs = [value["name"] for value in config["input"]]
        self._outputs = [value["name"] for value in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests of one batch, which have one shape, together."""
        fed = [
            {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in self._inputs
            }
            for request in requests
        ]
        try:
            joined = {name: np.concatenate([one[name] for one in fed]) for name in self._inputs}
            results = self._session.run(self._outputs, joined)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a dozen unrelated classes
            failed = pb_utils.TritonError(f"onnx runtime error: {error}")
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        sizes = [len(one[self._inputs[0]]) for one in fed]
        ends = np.cumsum(sizes)
        return [
            self._respond([rows[end - size : end] for rows in results])
            for size, end in zip(sizes, ends, strict=True)
        ]

    def _respond(self, rows: Sequence[Any]) -> Any:
        named = zip(self._outputs, rows, strict=True)
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in named]
        return pb_utils.InferenceResponse(output_tensors=tensors)
