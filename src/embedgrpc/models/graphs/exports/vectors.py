"""Finds pooled vectors and token vectors among an export's outputs, and checks their values."""

from pathlib import Path

import numpy as np

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.exports.names import (
    TOKEN_RANK,
    VECTOR_RANK,
    as_float,
    clear_names,
    configured_output,
)
from embedgrpc.models.graphs.outputs import (
    HIDDEN_NAMES,
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_VECTORS,
)
from embedgrpc.models.graphs.probe import HALF_PRECISION_TOLERANCE, is_close, run_probe
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile


def find_pooled(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> str | None:
    """Find the vector of an export that pools by itself and has no token vectors.

    Returns:
        The name of the pooled vector, float32 [batch, dimensions]; None if the export has token
        vectors, which are then pooled here.

    Raises:
        ModelError: The configured output is missing, or the rank of the output is wrong or unknown.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = configured_output(weight_file, properties, outputs)
    if not name and any(hidden in outputs for hidden in HIDDEN_NAMES):
        return None
    name = name or SENTENCE_EMBEDDING
    if name not in outputs:
        return None
    dims = outputs[name].type.tensor_type.shape.dim
    if len(dims) == TOKEN_RANK and properties.output:
        return None
    if len(dims) != VECTOR_RANK:
        raise ModelError(
            f"{weight_file.path}: output {name!r} must be of shape [batch, values] or "
            "[batch, tokens, values]"
        )
    return as_float(writer, clear_names(writer, name), outputs[name])


def find_hidden(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> tuple[str, str | None]:
    """Find the token vectors of an export.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size], and the new name of
        the export's own pooled vector, or None if it has none.

    Raises:
        ModelError: No output holds token vectors of the model's size.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = properties.output or next((name for name in HIDDEN_NAMES if name in outputs), None)
    if name is None:
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; "
            f"one must be {' or '.join(HIDDEN_NAMES)}, so that its vectors can be pooled, or set "
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


def find_token_vectors(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> tuple[str, bool]:
    """Find the token vectors of an export of a model of late interaction.

    Returns:
        The name of the token vectors, float32 [batch, tokens, values], and whether they have
        passed the model's layers: their size says so.

    Raises:
        ModelError: No output holds token vectors of either size, or the graph numbers positions
            by the mask, which leaves out the tokens that fill up queries.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = properties.output or next((name for name in HIDDEN_NAMES if name in outputs), None)
    if name is None or name not in outputs:
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; "
            f"one must be {' or '.join(HIDDEN_NAMES)}, the vectors of the tokens, or set output "
            "for this model in the configuration"
        )
    dims = outputs[name].type.tensor_type.shape.dim
    size = dims[-1].dim_value if dims else 0
    hidden_size, projected_size = properties.token_dimensions, properties.multi_vector_dimensions
    if len(dims) != TOKEN_RANK or size not in {hidden_size, projected_size}:
        raise ModelError(
            f"{weight_file.path}: output {name!r} must be of shape [batch, tokens, values] with "
            f"{hidden_size} or {projected_size} values, which it must state"
        )
    hidden = as_float(writer, clear_names(writer, name), outputs[name])
    return hidden, size != hidden_size


def check_no_heads(weight_file: WeightFile, properties: ModelProperties) -> None:
    """Check that no head needs token vectors, for an export without them.

    Raises:
        ModelError: A head needs them.
    """
    if not properties.include_prompt:
        raise ModelError(
            f"{weight_file.path}: the graph has no token vectors, so the tokens of a prompt cannot "
            "be left out of the mean, as include_prompt of the Pooling module demands"
        )
    for head in (properties.sparse_head, properties.multi_vector_head):
        if head is not None:
            raise ModelError(
                f"{weight_file.path}: the graph has no token vectors, which {head.path.name} needs"
            )


def check_pooled(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, outputs: tuple[str, ...]
) -> tuple[str, ...]:
    """Check the vector of an export that pools by itself, and whether it is normalised.

    Args:
        graph_path: The graph with our outputs.
        weight_file: The ONNX file.
        properties: The model's properties.
        outputs: Names of our outputs; the last is the export's own vector.

    Returns:
        The names of the outputs to keep: if the export normalises by itself, the vector before
        normalisation cannot be had.

    Raises:
        ModelError: The vector has another number of values than the model's files say, or is
            normalised and should not be.
    """
    (vectors,) = run_probe(graph_path, weight_file, properties, outputs[-1:])
    if vectors.shape[1:] != (properties.dimensions,):
        raise ModelError(
            f"{weight_file.path}: the graph gives vectors of {vectors.shape[-1]} values, not the "
            f"{properties.dimensions} that modules.json leads to"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    unit = bool(np.abs(lengths - 1.0).max() < HALF_PRECISION_TOLERANCE)
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
    """Check that an export's own pooled vector is the one that the model's files describe.

    If the export pools in another way than the files say, one of the two belongs to another model.

    Args:
        graph_path: The graph with our outputs and that of the export.
        weight_file: The ONNX file.
        properties: The model's properties.
        outputs: Names of our outputs.
        exported: Name of the export's output.

    Raises:
        ModelError: It is neither our vector before normalisation nor the one after it.
    """
    pooled = tuple(one for one in outputs if one != TOKEN_VECTORS)
    theirs, *ours = run_probe(graph_path, weight_file, properties, (exported, *pooled))
    # The export may normalise although the files lack Normalize; the files decide.
    ours.append(ours[-1] / np.maximum(np.linalg.norm(ours[-1], axis=-1, keepdims=True), 1e-12))
    if not any(is_close(theirs, our) for our in ours):
        poolings = ", ".join(properties.poolings)
        raise ModelError(
            f"{weight_file.path}: output {SENTENCE_EMBEDDING!r} is not what modules.json says "
            f"({poolings}): export it again or correct the Pooling module's config.json"
        )
