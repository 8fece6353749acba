"""Runs a graph once on made-up sequences, to test what it claims."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.onnx_runtime import NoKernelError, onnxruntime
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.sources.weight_file import WeightFile

# Two sequences of unlike length: every pooling gives another vector.
_LENGTHS = (7, 4)
# Loose enough for half precision, far below what another pooling makes.
_TOLERANCE = 1e-2


def probe_mask() -> NDArray[np.int64]:
    """The attention mask of the sequences, int64 [2, 7]."""
    steps = np.arange(max(_LENGTHS))[None, :]
    return (steps < np.array(_LENGTHS)[:, None]).astype(np.int64)


def run_probe(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, names: tuple[str, ...]
) -> list[NDArray[Any]]:
    """Runs a graph.

    Args:
        graph_path: The graph.
        weight_file: What it was made from, to be named in messages.
        properties: What the model is.
        names: The outputs to give.

    Returns:
        The outputs, for sequences of the lengths that `probe_mask` tells.

    Raises:
        ModelError: It cannot be loaded or run.
    """
    try:
        return _run(graph_path, properties, names)
    except Exception as error:  # the library raises no narrower class
        line = " ".join(str(error).split())
        raise ModelError(f"{weight_file.path} cannot be run by ONNX Runtime: {line}") from error


def try_graph(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, names: tuple[str, ...]
) -> None:
    """Runs a graph as `run_probe` does, unless it is made for other devices than the CPU.

    Args:
        graph_path: The graph.
        weight_file: What it was made from, to be named in messages.
        properties: What the model is.
        names: The outputs to give.

    Raises:
        ModelError: It cannot be loaded or run.
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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Two short texts need no more, and each thread takes memory.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(graph_path), options, providers=["CPUExecutionProvider"]
    )
    wanted = {value.name for value in session.get_inputs()}
    fed = {name: value for name, value in feeds.items() if name in wanted}
    results: list[NDArray[Any]] = session.run(list(names), fed)
    return results


def is_close(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    """Whether two outputs are the same but for rounding, in half precision at worst."""
    return theirs.shape == ours.shape and bool(
        np.abs(theirs - ours).max() <= _TOLERANCE * np.abs(ours).max()
    )
