"""Runs a graph once on made-up sequences, to check what its outputs hold."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.libraries.onnx_runtime import NoKernelError, onnxruntime
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.sources.weight_file import WeightFile

# Two sequences of different length, so that each pooling gives another vector.
_LENGTHS = (7, 4)
# Relative; allows half precision, and is far below the difference that another pooling makes.
HALF_PRECISION_TOLERANCE = 1e-2


def probe_mask() -> IntArray:
    """Return the attention mask of the sequences, int64 [2, 7]."""
    steps = np.arange(max(_LENGTHS))[None, :]
    return (steps < np.array(_LENGTHS)[:, None]).astype(np.int64)


def run_probe(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, names: tuple[str, ...]
) -> list[NDArray[Any]]:
    """Run a graph on the sequences of `probe_mask`.

    Args:
        graph_path: The graph.
        weight_file: The file that the graph was made from, for messages.
        properties: The model's properties.
        names: The outputs to return.

    Returns:
        The outputs, in the order of the names.

    Raises:
        ModelError: The graph cannot be loaded or run.
    """
    try:
        return _run(graph_path, properties, names)
    except Exception as error:  # ONNX Runtime has no common class of errors
        line = " ".join(str(error).split())
        raise ModelError(f"{weight_file.path} cannot be run by ONNX Runtime: {line}") from error


def try_graph(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, names: tuple[str, ...]
) -> None:
    """Run a graph as `run_probe` does; accept one that the CPU has no kernels for.

    Raises:
        ModelError: The graph cannot be loaded, or its run failed.
    """
    try:
        run_probe(graph_path, weight_file, properties, names)
    except ModelError as error:
        if not isinstance(error.__cause__, NoKernelError):
            raise


def _run(
    graph_path: Path, properties: ModelProperties, names: tuple[str, ...]
) -> list[NDArray[Any]]:
    mask = probe_mask()
    ids = np.where(
        mask == 1, np.arange(mask.shape[1]) + np.array(_LENGTHS)[:, None], properties.pad_token_id
    )
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    feeds["task_id"] = np.zeros(len(mask), np.int64)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Two short texts need one thread, and each more takes memory.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(graph_path), options, providers=["CPUExecutionProvider"]
    )
    wanted = {value.name for value in session.get_inputs()}
    fed = {name: value for name, value in feeds.items() if name in wanted}
    results: list[NDArray[Any]] = session.run(list(names), fed)
    return results


def is_close(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    """Return whether two outputs differ by no more than half precision explains."""
    return theirs.shape == ours.shape and bool(
        np.abs(theirs - ours).max() <= HALF_PRECISION_TOLERANCE * np.abs(ours).max()
    )
