"""Runs a graph once on made-up sequences, to check what its outputs hold."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.libraries.onnx_runtime import NoKernelError, onnxruntime
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.output_sizes import output_sizes
from embedgrpc.models.graphs.outputs import PROMPT_TOKENS
from embedgrpc.models.kinds import PaddingSide
from embedgrpc.models.sources.weight_file import WeightFile

# Two sequences of different length, so that each pooling gives another vector.
_LENGTHS = (7, 4)
# More than the longest of them.
_PADDED_TOKENS = 9
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
    with _errors_of(weight_file):
        return _run(_open(graph_path), properties, names)


def check_batching(
    graph_path: Path,
    weight_file: WeightFile,
    properties: ModelProperties,
    names: tuple[str, ...],
    *,
    tolerance: float,
) -> None:
    """Check that a sequence has the same results alone, in a batch, and with more padding.

    Accepts a graph that the CPU has no kernels for.

    Args:
        graph_path: The graph.
        weight_file: The file that the graph was made from, for messages.
        properties: The model's properties.
        names: The outputs to compare.
        tolerance: The largest difference, relative to the largest value.

    Raises:
        ModelError: The graph cannot be loaded or run, or the results differ.
    """
    side = properties.padding_side
    try:
        with _errors_of(weight_file):
            session = _open(graph_path)
            difference = _compare(session, properties, names, side=side)
            if difference <= tolerance:
                return
            other: PaddingSide = "right" if side == "left" else "left"
            helps = _compare(session, properties, names, side=other) <= tolerance
    except ModelError as error:
        if isinstance(error.__cause__, NoKernelError):
            return
        raise
    advice = (
        f"set padding_side to {other} for this model in the configuration"
        if helps
        else "export it again with dynamic axes and an attention mask that is used"
    )
    raise ModelError(
        f"{weight_file.path}: a text's result depends on the padding of its batch on the {side} "
        f"(by {difference:.1g} of the largest value): {advice}"
    )


@contextmanager
def _errors_of(weight_file: WeightFile) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime has no common class of errors
        line = " ".join(str(error).split())
        raise ModelError(f"{weight_file.path} cannot be run by ONNX Runtime: {line}") from error


def _open(graph_path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Short texts need one thread, and each more takes memory.
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(graph_path), options, providers=["CPUExecutionProvider"]
    )


def _run(
    session: Any,
    properties: ModelProperties,
    names: tuple[str, ...],
    *,
    rows: Sequence[int] = (0, 1),
    tokens: int = 0,
    side: PaddingSide = "right",
) -> list[NDArray[Any]]:
    """Run some of the sequences, padded to the longest or to a number of tokens."""
    lengths = np.array(_LENGTHS)[list(rows)]
    steps = np.arange(max(tokens, *lengths))[None, :]
    if side == "left":
        steps = steps - (steps.shape[1] - lengths[:, None])
    mask = ((steps >= 0) & (steps < lengths[:, None])).astype(np.int64)
    ids = np.where(mask == 1, steps + lengths[:, None], properties.pad_token_id)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    feeds["task_id"] = feeds[PROMPT_TOKENS] = np.zeros(len(mask), np.int64)
    wanted = {value.name for value in session.get_inputs()}
    results: list[NDArray[Any]] = session.run(
        list(names), {name: value for name, value in feeds.items() if name in wanted}
    )
    return results


def _compare(
    session: Any, properties: ModelProperties, names: tuple[str, ...], *, side: PaddingSide
) -> float:
    """Return the largest difference between results alone and padded, relative to the largest."""
    alone = [_run(session, properties, names, rows=(row,)) for row in range(len(_LENGTHS))]
    batched = _run(session, properties, names, side=side)
    padded = _run(session, properties, names, rows=(1,), tokens=_PADDED_TOKENS, side=side)
    sizes = output_sizes(properties)
    worst = 0.0
    for position, name in enumerate(names):
        per_token = None in sizes[name]
        pairs = [(alone[row][position], batched[position][row : row + 1]) for row in (0, 1)]
        pairs.append((alone[1][position], padded[position]))
        for one, other in pairs:
            if per_token:
                tokens = one.shape[1]
                place = slice(-tokens, None) if side == "left" else slice(tokens)
                worst = max(worst, _difference(one, other[:, place]))
            else:
                worst = max(worst, _difference(one, other))
    return worst


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return np.inf
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    largest = max(float(np.abs(one).max()), 1e-12)
    difference = float(np.abs(one - other).max()) / largest
    return np.inf if np.isnan(difference) else difference


def is_close(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    """Return whether two outputs differ by no more than half precision explains."""
    return theirs.shape == ours.shape and bool(
        np.abs(theirs - ours).max() <= HALF_PRECISION_TOLERANCE * np.abs(ours).max()
    )
