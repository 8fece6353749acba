"""Appends the outputs with a value per token or per vocabulary entry."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.splade_config import SpladePooling, SpladeStrategy
from embedgrpc.models.graphs.heads.dense import append_layer
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS, TOKEN_WEIGHTS, VOCABULARY_WEIGHTS
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.token_heads import TokenHead
from embedgrpc.models.tensors.vector_layers import VectorLayer


def append_token_weights(writer: GraphWriter, head: TokenHead, hidden: str) -> str:
    """Append a weight for each token: the positive part of a linear layer.

    Args:
        writer: The graph's writer.
        head: The layer; it has one output.
        hidden: float32 [batch, tokens, hidden_size].

    Returns:
        The name of the graph's output, float32 [batch, tokens].

    Raises:
        ModelError: The layer cannot be read.
    """
    weights = writer.op("Relu", _linear(writer, head, hidden))
    return writer.output(writer.reshape(weights, [0, -1]), TOKEN_WEIGHTS)


def append_token_embeddings(writer: GraphWriter, head: TokenHead, hidden: str) -> str:
    """Append a vector of length 1 for each token.

    Args:
        writer: The graph's writer.
        head: The layer to apply to the token vectors.
        hidden: float32 [batch, tokens, hidden_size].

    Returns:
        The name of the graph's output, float32 [batch, tokens, out_features].

    Raises:
        ModelError: The layer cannot be read.
    """
    return writer.output(writer.scale_to_unit(_linear(writer, head, hidden)), TOKEN_EMBEDDINGS)


def append_projected_tokens(
    writer: GraphWriter, layers: Sequence[VectorLayer], hidden: str, *, unit: bool
) -> str:
    """Append a vector for each token, made by the layers of a model of late interaction.

    Args:
        writer: The graph's writer.
        layers: The layers that each token vector passes, in order.
        hidden: float32 [batch, tokens, hidden_size].
        unit: Whether to scale each vector to length 1.

    Returns:
        The name of the graph's output, float32 [batch, tokens, dimensions].

    Raises:
        ModelError: The weights of a layer cannot be used.
    """
    vectors = hidden
    for layer in layers:
        vectors = append_layer(writer, layer, vectors)
    if unit:
        vectors = writer.scale_to_unit(vectors)
    return writer.output(vectors, TOKEN_EMBEDDINGS)


def append_vocabulary_weights(
    writer: GraphWriter, pooling: SpladePooling, logits: str, attention_mask: str
) -> str:
    """Append one sparse vector per text, made from the logits of a masked-language head.

    Args:
        writer: The graph's writer.
        pooling: The strategy, and the number of logarithms.
        logits: float32 [batch, tokens, vocabulary].
        attention_mask: int64 [batch, tokens]; 1 for a real token.

    Returns:
        The name of the graph's output, float32 [batch, vocabulary].

    Source: sentence-transformers `SpladePooling`.
    """
    mask = writer.op("Cast", attention_mask, to=TensorProto.FLOAT)
    # A logit of 0 weighs nothing.
    real = writer.op("Mul", logits, writer.reshape(mask, [0, -1, 1]))
    if pooling.strategy is SpladeStrategy.MAX:
        # The logarithm is monotonic: taking it after the maximum gives the same and costs less.
        largest = _squeeze(writer, writer.reduce("ReduceMax", real, 1))
        weights = _grow(writer, largest, pooling.logarithms)
    else:
        weights = _squeeze(
            writer, writer.reduce("ReduceSum", _grow(writer, real, pooling.logarithms), 1)
        )
    return writer.output(weights, VOCABULARY_WEIGHTS)


def _linear(writer: GraphWriter, head: TokenHead, hidden: str) -> str:
    weight, bias = head.read()  # float32 [out_features, in_features], [out_features]
    matrix = _name(writer, head, weight.T, "weight")
    product = writer.op("MatMul", hidden, matrix, name=f"{EXACT_PREFIX}head")
    return writer.op("Add", product, _name(writer, head, bias, "bias"))


def _name(writer: GraphWriter, head: TokenHead, values: FloatArray, part: str) -> str:
    return writer.weight(values, f"{head.path.stem}.{part}")


def _grow(writer: GraphWriter, logits: str, logarithms: int) -> str:
    weights = writer.op("Relu", logits)
    for _ in range(logarithms):
        weights = writer.op("Log", writer.op("Add", weights, writer.scalar(1.0)))
    return weights


def _squeeze(writer: GraphWriter, source: str) -> str:
    # From [batch, 1, vocabulary]. Not Reshape, in which 0 would mean an axis to keep.
    return writer.op("Gather", source, writer.constant(np.array(0, np.int64), "first"), axis=1)
