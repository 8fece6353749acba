"""Finds what an exported graph offers, by the names of its outputs, and tests what it claims."""

from pathlib import Path

import numpy as np

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.exports.names import as_float, asked_for, clear_names
from embedgrpc.models.graphs.outputs import POOLED_EMBEDDING, SENTENCE_EMBEDDING
from embedgrpc.models.graphs.probe import is_close, run_probe
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile

_HIDDEN_NAMES = ("last_hidden_state", "token_embeddings")
# How far from 1 the length of a scaled vector may be, in half precision.
_TOLERANCE = 1e-2
_VECTOR_RANK = 2
_TOKEN_RANK = 3


def find_pooled(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> str | None:
    """Finds the vector of an exported graph that pools by itself and gives nothing else.

    Args:
        writer: Of the graph.
        weight_file: The ONNX file.
        properties: What the model is.

    Returns:
        The name of the pooled vector, float32 [batch, dimensions]; None where the graph gives
        token vectors, which are pooled here.

    Raises:
        ModelError: The output that is asked for is not there, or its shape is not told.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = asked_for(weight_file, properties, outputs)
    if not name and any(hidden in outputs for hidden in _HIDDEN_NAMES):
        return None
    name = name or SENTENCE_EMBEDDING
    if name not in outputs:
        return None
    dims = outputs[name].type.tensor_type.shape.dim
    if len(dims) == _TOKEN_RANK and properties.output:
        return None
    if len(dims) != _VECTOR_RANK:
        raise ModelError(
            f"{weight_file.path}: output {name!r} must be of shape [batch, values] or "
            "[batch, tokens, values]"
        )
    return as_float(writer, clear_names(writer, name), outputs[name])


def find_hidden(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> tuple[str, str | None]:
    """Finds the token vectors of an exported graph.

    Args:
        writer: Of the graph.
        weight_file: The ONNX file.
        properties: What the model is.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size], and that of the
        pooled vector which the graph has already, under a new name; None where it has none.

    Raises:
        ModelError: The graph has no output that holds token vectors.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = properties.output or next((name for name in _HIDDEN_NAMES if name in outputs), None)
    if name is None:
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; "
            f"one must be {' or '.join(_HIDDEN_NAMES)}, so that its vectors can be pooled, or set "
            "output for this model in the configuration"
        )
    dims = outputs[name].type.tensor_type.shape.dim
    hidden_size = properties.token_dimensions
    if dims and dims[-1].HasField("dim_value") and dims[-1].dim_value != hidden_size:
        raise ModelError(
            f"{weight_file.path}: output {name!r} has {dims[-1].dim_value} values per token, "
            f"not the {hidden_size} that the Pooling module's config.json says"
        )
    exported = None
    if SENTENCE_EMBEDDING in outputs and name != SENTENCE_EMBEDDING:
        renamed = writer.vacate(SENTENCE_EMBEDDING)
        exported = as_float(writer, renamed, outputs[SENTENCE_EMBEDDING])
    if POOLED_EMBEDDING in outputs:
        writer.vacate(POOLED_EMBEDDING)
    return as_float(writer, clear_names(writer, name), outputs[name]), exported


def check_no_heads(weight_file: WeightFile, properties: ModelProperties) -> None:
    """Checks that nothing is to be made of token vectors, for a graph that gives none.

    Raises:
        ModelError: A head is there that needs them.
    """
    for head in (properties.sparse_head, properties.multi_vector_head):
        if head is not None:
            raise ModelError(
                f"{weight_file.path}: the graph gives no token vectors, which "
                f"{head.path.name} needs"
            )


def check_pooled(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, outputs: tuple[str, ...]
) -> tuple[str, ...]:
    """Checks the vector of a graph that pools by itself, and finds out whether it normalises.

    Args:
        graph_path: The graph with our outputs.
        weight_file: The ONNX file.
        properties: What the model is.
        outputs: Names of ours; the last is the vector as the graph had it.

    Returns:
        The names of the outputs that are what they say: where the graph normalises by itself,
        the vector before that cannot be had.

    Raises:
        ModelError: The vector is of another length than the model's files say, or normalised
            where they say that it is not.
    """
    (vectors,) = run_probe(graph_path, weight_file, properties, outputs[-1:])
    if vectors.shape[1:] != (properties.dimensions,):
        raise ModelError(
            f"{weight_file.path}: the graph gives vectors of {vectors.shape[-1]} values, not the "
            f"{properties.dimensions} that modules.json leads to"
        )
    unit = bool(np.abs(np.linalg.norm(vectors, axis=1) - 1.0).max() < _TOLERANCE)
    if unit and not properties.normalize:
        raise ModelError(
            f"{weight_file.path}: the graph normalises its vectors, but modules.json has no "
            "Normalize: set normalize for this model in the configuration"
        )
    return outputs[:1] if unit else outputs


def check_sentence_embedding(
    graph_path: Path,
    weight_file: WeightFile,
    properties: ModelProperties,
    outputs: tuple[str, ...],
    exported: str,
) -> None:
    """Checks that a graph's own pooled vector is what the model's files say.

    A graph that pools in another way than its folder tells is of another model, and nobody
    could say which of the two was meant.

    Args:
        graph_path: A graph with the outputs of ours and with that of the export.
        weight_file: The ONNX file.
        properties: What the model is.
        outputs: Names of ours.
        exported: Name of the export's.

    Raises:
        ModelError: It is neither the vector before normalisation nor the one after it.
    """
    theirs, *ours = run_probe(graph_path, weight_file, properties, (exported, *outputs))
    # The files may leave out Normalize where the export has it: what they say is what is done.
    ours.append(ours[-1] / np.maximum(np.linalg.norm(ours[-1], axis=-1, keepdims=True), 1e-12))
    if not any(is_close(theirs, our) for our in ours):
        poolings = ", ".join(properties.poolings)
        raise ModelError(
            f"{weight_file.path}: output {SENTENCE_EMBEDDING!r} is not what modules.json says "
            f"({poolings}): export it anew or correct the Pooling module's config.json"
        )
