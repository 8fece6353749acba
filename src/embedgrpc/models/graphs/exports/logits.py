"""Finds the logits of an export: those of labels, or of a masked-language head."""

from pathlib import Path

import onnx

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.exports.names import (
    TOKEN_RANK,
    VECTOR_RANK,
    as_float,
    clear_names,
    configured_output,
)
from embedgrpc.models.graphs.outputs import LOGITS, VOCABULARY_WEIGHTS
from embedgrpc.models.graphs.probe import run_probe
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile

_TOKEN_LOGITS_NAMES = ("logits", "prediction_scores")


def find_logits(writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties) -> str:
    """Find the logits of an exported cross-encoder or classifier.

    Returns:
        The name of the graph's output, float32 [batch, labels].

    Raises:
        ModelError: The graph has no such output, or its shape is another.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = configured_output(weight_file, properties, outputs) or LOGITS
    if name not in outputs:
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; one must be "
            f"{LOGITS}, or set output for this model in the configuration"
        )
    dims = outputs[name].type.tensor_type.shape.dim
    count = max(1, len(properties.labels))
    if len(dims) != VECTOR_RANK or (dims[1].HasField("dim_value") and dims[1].dim_value != count):
        raise ModelError(
            f"{weight_file.path}: output {name!r} must be of shape [batch, {count}], a logit for "
            "each label"
        )
    return writer.output(as_float(writer, clear_names(writer, name), outputs[name]), LOGITS)


def find_token_logits(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> str:
    """Find the logits of every token in an exported masked-language model.

    Returns:
        The name of the logits, float32 [batch, tokens, vocabulary].

    Raises:
        ModelError: No output fits, or several do.
    """
    outputs = {value.name: value for value in writer.graph.output}
    name = configured_output(weight_file, properties, outputs)
    fitting = [
        value
        for value in ([outputs[name]] if name else writer.graph.output)
        if _fits_logits(value, properties.sparse_dimensions)
    ]
    if len(fitting) > 1:
        fitting = [value for value in fitting if value.name in _TOKEN_LOGITS_NAMES]
    if len(fitting) != 1:
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; one must hold the "
            f"logits of tokens, of shape [batch, tokens, {properties.sparse_dimensions}]"
        )
    return as_float(writer, clear_names(writer, fitting[0].name), fitting[0])


def _fits_logits(value: onnx.ValueInfoProto, vocabulary_size: int) -> bool:
    dims = value.type.tensor_type.shape.dim
    # An unknown length is checked when the graph runs; see `check_vocabulary`.
    return len(dims) == TOKEN_RANK and (
        not dims[-1].HasField("dim_value") or dims[-1].dim_value == vocabulary_size
    )


def check_vocabulary(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties
) -> None:
    """Check that the logits found have one value for every vocabulary entry.

    Raises:
        ModelError: They have another number of values.
    """
    (weights,) = run_probe(graph_path, weight_file, properties, (VOCABULARY_WEIGHTS,))
    if weights.shape[1:] != (properties.sparse_dimensions,):
        raise ModelError(
            f"{weight_file.path}: the graph gives {weights.shape[-1]} values per token, not a "
            f"logit for each of the {properties.sparse_dimensions} that vocab_size of "
            "config.json says"
        )
