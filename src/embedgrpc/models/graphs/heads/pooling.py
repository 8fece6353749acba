"""Appends pooling and normalisation to a graph with a vector per token, built or exported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import TensorProto

from embedgrpc.models.graphs.heads.dense import append_layer
from embedgrpc.models.graphs.outputs import POOLED_EMBEDDING, SENTENCE_EMBEDDING
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.tensors.vector_layers import VectorLayer


def append_embedding_head(
    writer: GraphWriter,
    *,
    hidden: str,
    attention_mask: str,
    hidden_size: int,
    poolings: Sequence[Pooling],
    layers: Sequence[VectorLayer] = (),
    normalize: bool,
    prompt_tokens: str = "",
) -> tuple[str, ...]:
    """Turn token vectors into one vector per sequence.

    Args:
        writer: The graph's writer.
        hidden: float32 [batch, tokens, hidden_size].
        attention_mask: int64 [batch, tokens]; 1 for a real token.
        hidden_size: Values per token vector.
        poolings: The poolings whose results are concatenated.
        layers: The layers after the concatenation, in order.
        normalize: Whether to scale the vector to length 1.
        prompt_tokens: int64 [batch], how many tokens at the start are not pooled; empty for none.

    Returns:
        As `append_outputs`.

    Raises:
        ModelError: The weights of a layer cannot be used.
    """
    tokens = _Tokens(writer, hidden, attention_mask, hidden_size, prompt_tokens)
    parts = [_POOLINGS[pooling](tokens) for pooling in poolings]
    pooled = parts[0] if len(parts) == 1 else writer.op("Concat", *parts, axis=-1)
    for layer in layers:
        pooled = append_layer(writer, layer, pooled)
    return append_outputs(writer, pooled, normalize=normalize)


def append_outputs(writer: GraphWriter, pooled: str, *, normalize: bool) -> tuple[str, ...]:
    """Name pooled vectors, float32 [batch, dimensions], as outputs of the graph.

    Returns:
        The names of the outputs, float32 [batch, dimensions] each: the vector and, if it is
        normalised, the one before.
    """
    if not normalize:
        return (writer.output(pooled, SENTENCE_EMBEDDING),)
    return (
        writer.output(writer.scale_to_unit(pooled), SENTENCE_EMBEDDING),
        writer.output(pooled, POOLED_EMBEDDING),
    )


def append_last_tokens(
    writer: GraphWriter, hidden: str, attention_mask: str, *, hidden_size: int
) -> str:
    """Append the choice of the last real token of each sequence, on either side of padding.

    Args:
        writer: The graph's writer.
        hidden: float32 [batch, tokens, hidden_size].
        attention_mask: int64 [batch, tokens]; 1 for a real token.
        hidden_size: Values per token vector.

    Returns:
        The name of its vectors, float32 [batch, hidden_size].
    """
    return _last_token(_Tokens(writer, hidden, attention_mask, hidden_size))


@dataclass(frozen=True)
class _Tokens:
    """The token vectors, and the values that several poolings share."""

    writer: GraphWriter
    hidden: str  # float32 [batch, tokens, hidden_size]
    attention_mask: str  # int64 [batch, tokens]
    hidden_size: int
    prompt_tokens: str = ""  # int64 [batch], or empty

    @cached_property
    def real(self) -> str:
        """float32 [batch, tokens]: 1 for a real token."""
        return self.writer.op("Cast", self.attention_mask, to=TensorProto.FLOAT, name="mask")

    @cached_property
    def mask(self) -> str:
        """float32 [batch, tokens]: 1 for a token that is pooled."""
        if not self.prompt_tokens:
            return self.real
        writer = self.writer
        prompt = writer.reshape(
            writer.op("Cast", self.prompt_tokens, to=TensorProto.FLOAT), [-1, 1]
        )
        behind = writer.op("Greater", self.position, prompt)
        return writer.op("Mul", self.real, writer.op("Cast", behind, to=TensorProto.FLOAT))

    @cached_property
    def count(self) -> str:
        """float32 [batch, 1]: the number of real tokens; never 0."""
        total = self.writer.reduce("ReduceSum", self.mask, 1)
        return self.writer.op("Max", total, self.writer.scalar(1e-9))

    @cached_property
    def position(self) -> str:
        """float32 [batch, tokens]: 1 for the first real token, 2 for the second and so on."""
        axis = self.writer.constant(np.array(1, dtype=np.int64), "axis")
        return self.writer.op("CumSum", self.real, axis)

    @cached_property
    def sum(self) -> str:
        """float32 [batch, hidden_size]: the sum of the real tokens."""
        return self.weighted_sum(self.mask)

    def weighted_sum(self, weights: str) -> str:
        """Return float32 [batch, hidden_size], from weights float32 [batch, tokens]."""
        row = self.writer.reshape(weights, [0, 1, -1])
        return self.writer.reshape(
            self.writer.op("MatMul", row, self.hidden), [-1, self.hidden_size]
        )

    def at(self, index: str) -> str:
        """Return float32 [batch, hidden_size]: the vectors at an index int64 [batch, 1]."""
        writer = self.writer
        shape = writer.op("Shape", self.attention_mask)
        batch = writer.op("Gather", shape, writer.constant(np.array(0, dtype=np.int64), "axis"))
        tokens = writer.op("Gather", shape, writer.constant(np.array(1, dtype=np.int64), "axis"))
        zero = writer.constant(np.array(0, dtype=np.int64), "zero")
        one = writer.constant(np.array(1, dtype=np.int64), "one")
        row = writer.op("Mul", writer.op("Range", zero, batch, one), tokens)
        flat_index = writer.op("Add", row, writer.reshape(index, [-1]))
        flat = writer.reshape(self.hidden, [-1, self.hidden_size])
        return writer.op("Gather", flat, flat_index, axis=0)


def _cls(tokens: _Tokens) -> str:
    # The first real token, wherever padding is.
    return tokens.at(tokens.writer.op("ArgMax", tokens.mask, axis=1, keepdims=1))


def _max(tokens: _Tokens) -> str:
    writer = tokens.writer
    real = writer.op("Cast", writer.reshape(tokens.mask, [0, -1, 1]), to=TensorProto.BOOL)
    kept = writer.op("Where", real, tokens.hidden, writer.scalar(-np.inf))
    return writer.reshape(writer.reduce("ReduceMax", kept, 1), [-1, tokens.hidden_size])


def _mean(tokens: _Tokens) -> str:
    return tokens.writer.op("Div", tokens.sum, tokens.count)


def _mean_sqrt_len(tokens: _Tokens) -> str:
    return tokens.writer.op("Div", tokens.sum, tokens.writer.op("Sqrt", tokens.count))


def _weighted_mean(tokens: _Tokens) -> str:
    # Later tokens weigh more: the first 1, the second 2. Padding on the left does not count, so
    # that a text has the same vector in every batch.
    writer = tokens.writer
    weights = writer.op("Mul", tokens.position, tokens.mask)
    total = writer.op("Max", writer.reduce("ReduceSum", weights, 1), writer.scalar(1e-9))
    return writer.op("Div", tokens.weighted_sum(weights), total)


def _last_token(tokens: _Tokens) -> str:
    # Positions stop growing at the last real token, and ArgMax returns the first maximum.
    return tokens.at(tokens.writer.op("ArgMax", tokens.position, axis=1, keepdims=1))


_POOLINGS: dict[Pooling, Callable[[_Tokens], str]] = {
    Pooling.CLS: _cls,
    Pooling.MAX: _max,
    Pooling.MEAN: _mean,
    Pooling.MEAN_SQRT_LEN: _mean_sqrt_len,
    Pooling.WEIGHTED_MEAN: _weighted_mean,
    Pooling.LAST_TOKEN: _last_token,
}
