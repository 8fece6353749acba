"""Finds what an exported graph offers, by the names of its outputs, and tests what it claims."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.graph_writer import GraphWriter
from embedgrpc.models.metadata import ModelMetadata
from embedgrpc.models.origin import Origin
from embedgrpc.models.outputs import LOGITS, POOLED_EMBEDDING, SENTENCE_EMBEDDING

_HIDDEN_NAMES = ("last_hidden_state", "token_embeddings")
# Loose enough for half precision, far below what another pooling makes.
_TOLERANCE = 1e-2


def find_hidden(
    writer: GraphWriter, origin: Origin, metadata: ModelMetadata
) -> tuple[str, str | None]:
    """Finds the token vectors of an exported graph.

    Args:
        writer: Of the graph.
        origin: The ONNX file.
        metadata: What the model is.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size], and that of the
        pooled vector which the graph has already, under a new name; None where it has none.

    Raises:
        ModelError: The graph has no output that holds token vectors.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = next((name for name in _HIDDEN_NAMES if name in outputs), None)
    if name is None:
        raise ModelError(
            f"{origin.path}: the graph's outputs are {', '.join(outputs)}; "
            f"one must be {' or '.join(_HIDDEN_NAMES)}, so that its vectors can be pooled"
        )
    dims = outputs[name].type.tensor_type.shape.dim
    hidden_size = metadata.dimensions // len(metadata.poolings)
    if dims and dims[-1].HasField("dim_value") and dims[-1].dim_value != hidden_size:
        raise ModelError(
            f"{origin.path}: output {name!r} has {dims[-1].dim_value} values per token, "
            f"not the {hidden_size} that the Pooling module's config.json says"
        )
    exported = None
    if SENTENCE_EMBEDDING in outputs:
        renamed = writer.vacate(SENTENCE_EMBEDDING)
        exported = _as_float(writer, renamed, outputs[SENTENCE_EMBEDDING])
    if POOLED_EMBEDDING in outputs:
        writer.vacate(POOLED_EMBEDDING)
    return _as_float(writer, name, outputs[name]), exported


def find_logits(writer: GraphWriter, origin: Origin) -> str:
    """Finds the logits of an exported cross-encoder, and makes them float32 [batch, 1].

    Args:
        writer: Of the graph.
        origin: The ONNX file.

    Returns:
        The name of the graph's output.

    Raises:
        ModelError: The graph has no such output, or one of another shape.
    """
    outputs = {value.name: value for value in writer.graph.output}
    if LOGITS not in outputs:
        raise ModelError(
            f"{origin.path}: the graph's outputs are {', '.join(outputs)}; one must be {LOGITS}"
        )
    dims = outputs[LOGITS].type.tensor_type.shape.dim
    if len(dims) != 2 or (dims[1].HasField("dim_value") and dims[1].dim_value != 1):  # noqa: PLR2004 - batch and label
        raise ModelError(f"{origin.path}: output {LOGITS!r} must be of shape [batch, 1]")
    renamed = writer.vacate(LOGITS)
    return writer.output(_as_float(writer, renamed, outputs[LOGITS]), LOGITS)


def check_sentence_embedding(
    graph_path: Path,
    origin: Origin,
    metadata: ModelMetadata,
    outputs: tuple[str, ...],
    exported: str,
) -> None:
    """Checks that a graph's own pooled vector is what the model's files say.

    A graph that pools in another way than its folder tells is of another model, and nobody
    could say which of the two was meant.

    Args:
        graph_path: A graph with the outputs of ours and with that of the export.
        origin: The ONNX file.
        metadata: What the model is.
        outputs: Names of ours.
        exported: Name of the export's.

    Raises:
        ModelError: It is neither the vector before normalisation nor the one after it.
    """
    session = _load(graph_path, origin)
    # Two sequences of unlike length: every pooling gives another vector.
    lengths = np.array([[7], [4]])
    steps = np.arange(7)[None, :]
    mask = (steps < lengths).astype(np.int64)
    ids = np.where(mask == 1, steps + lengths, metadata.pad_token_id)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    wanted = {value.name for value in session.get_inputs()}
    fed = {name: value for name, value in feeds.items() if name in wanted}
    theirs, *ours = session.run([exported, *outputs], fed)
    if not any(_close(theirs, our) for our in ours):
        poolings = ", ".join(metadata.poolings)
        raise ModelError(
            f"{origin.path}: output {SENTENCE_EMBEDDING!r} is not what modules.json says "
            f"({poolings}): export it anew or correct the Pooling module's config.json"
        )


def _close(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    return theirs.shape == ours.shape and bool(
        np.abs(theirs - ours).max() <= _TOLERANCE * np.abs(ours).max()
    )


def _as_float(writer: GraphWriter, name: str, described: onnx.ValueInfoProto) -> str:
    if described.type.tensor_type.elem_type == TensorProto.FLOAT:
        return name
    return writer.op("Cast", name, to=TensorProto.FLOAT)


def _load(graph_path: Path, origin: Origin) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            str(graph_path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(f"{origin.path} cannot be loaded by ONNX Runtime: {error}") from error
