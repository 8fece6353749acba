"""Builds encoders from their weights, with or without a classifier.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018; `families`
lists the differences of other families.
"""

import math

import numpy as np
from onnx import TensorProto

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS, gelu
from embedgrpc.models.graphs.encoders.config import EncoderConfig
from embedgrpc.models.graphs.encoders.families import Family, Positions, TokenTypes
from embedgrpc.models.graphs.encoders.relative_positions import distance_buckets
from embedgrpc.models.graphs.encoders.shapes import (
    check_layer_count,
    classifier_shapes,
    encoder_shapes,
)
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.weights import Tensors


def build(writer: GraphWriter, tensors: Tensors, config: JsonObject, family: Family) -> str:
    """Append the backbone to a graph with the inputs of the family; see `build_backbone`."""
    encoder = _Encoder(writer, tensors, EncoderConfig.read(config, family), family)
    check_layer_count(tensors, config, family.keys.layers)
    tensors.check(encoder_shapes(encoder.config, family, encoder.prefix, encoder.norm_names))
    hidden = encoder.embed()
    bias = encoder.attention_bias()
    for number in range(encoder.config.layers):
        hidden = encoder.layer(family.layer.format(number), hidden, bias)
    return hidden


def build_classifier(
    writer: GraphWriter,
    tensors: Tensors,
    config: JsonObject,
    family: Family,
    hidden: str,
    *,
    label_count: int,
) -> str:
    """Append the head that scores a sequence by its first token.

    Args:
        writer: The graph's writer.
        tensors: The weights.
        config: `config.json`.
        family: The model's family.
        hidden: float32 [batch, tokens, hidden_size].
        label_count: The number of labels.

    Returns:
        The name of the logits, float32 [batch, labels].

    Raises:
        ModelError: The weights do not fit `config.json`.
    """
    encoder = _Encoder(writer, tensors, EncoderConfig.read(config, family), family)
    head = family.classifier
    dense = (encoder.prefix if head.in_backbone else "") + head.dense
    tensors.check(classifier_shapes(encoder.config, dense, head.out, label_count))
    # The first token of each sequence, [batch, hidden_size].
    first = writer.op("Gather", hidden, writer.constant(np.array(0, np.int64), "first"), axis=1)
    inner = encoder.linear(dense, first, exact=True)
    active = gelu(writer, inner) if head.activation == "Gelu" else writer.op(head.activation, inner)
    return encoder.linear(head.out, active, exact=True)


class _Encoder:
    """The parts of a backbone; each method appends one and returns the name of its result."""

    def __init__(
        self, writer: GraphWriter, tensors: Tensors, config: EncoderConfig, family: Family
    ) -> None:
        self.writer = writer
        self.tensors = tensors
        self.config = config
        self.family = family
        prefixed = any(name.startswith(family.prefix) for name in tensors.names)
        self.prefix = family.prefix if prefixed else ""
        # Checkpoints converted from TensorFlow keep its names.
        old = any(name.endswith("LayerNorm.gamma") for name in tensors.names)
        self.norm_names = ("gamma", "beta") if old else ("weight", "bias")
        self._present: dict[str, str] = {}

    def embed(self) -> str:
        """float32 [batch, tokens, hidden_size]."""
        writer = self.writer
        summed = writer.op("Gather", self.table("word"), "input_ids", axis=0)
        if self.family.token_types is TokenTypes.INPUT:
            types = writer.op("Gather", self.table("token_type"), "token_type_ids", axis=0)
            summed = writer.op("Add", summed, types)
        elif self.family.token_types is TokenTypes.FIRST:
            first = self.tensors.read(f"{self.prefix}embeddings.token_type_embeddings.weight")[:1]
            summed = writer.op("Add", summed, writer.weight(first, "token_type"))
        summed = writer.op("Add", summed, self.positions())
        hidden = self.norm(f"{self.prefix}embeddings.LayerNorm", summed)
        if self.config.embedding_size != self.config.hidden_size or (
            f"{self.prefix}{self.family.projection}.weight" in self.tensors.names
        ):
            hidden = self.linear(self.prefix + self.family.projection, hidden)
        return hidden

    def positions(self) -> str:
        """float32 [(batch,) tokens, embedding_size]: the rows of the positions."""
        writer = self.writer
        if self.family.positions is Positions.FROM_START:
            start = writer.constant(np.array([0], dtype=np.int64), "start")
            return writer.op("Slice", self.table("position"), start, self.token_count(), start)
        # By the ids and not by the mask: as in the reference, a padding token that a text spells
        # out has no position.
        padding = writer.constant(np.array(self.config.padding_id, dtype=np.int64), "padding")
        equal = writer.op("Equal", "input_ids", padding)
        real = writer.op("Cast", writer.op("Not", equal), to=TensorProto.INT64)
        axis = writer.constant(np.array(1, dtype=np.int64), "axis")
        count = writer.op("Mul", writer.op("CumSum", real, axis), real)
        return writer.op("Gather", self.table("position"), writer.op("Add", count, padding), axis=0)

    def token_count(self) -> str:
        """int64 [1]: tokens per sequence, padding included."""
        shape = self.writer.op("Shape", "input_ids")
        return self.writer.op(
            "Gather", shape, self.writer.constant(np.array([1], dtype=np.int64), "axis")
        )

    def table(self, kind: str) -> str:
        """float32 [rows, embedding_size]: a table of embeddings."""
        return self.weight(f"{self.prefix}embeddings.{kind}_embeddings.weight")

    def attention_bias(self) -> str:
        """float32 [batch, 1 or heads, 1 or tokens, tokens]: added to attention scores."""
        writer = self.writer
        mask = writer.op("Cast", "attention_mask", to=TensorProto.FLOAT)
        padding = writer.op("Sub", writer.scalar(1.0), writer.reshape(mask, [0, 1, 1, -1]))
        # 0 for a real token; for padding so low that its weight becomes 0.
        bias = writer.op("Mul", padding, writer.scalar(float(np.finfo(np.float32).min)))
        return writer.op("Add", self.relative_bias(), bias) if self.family.relative else bias

    def relative_bias(self) -> str:
        """float32 [heads, tokens, tokens]: a bias by the distance between two tokens."""
        writer = self.writer
        farthest = self.config.positions - 1
        distances = np.arange(-farthest, farthest + 1)
        weights = self.tensors.read(self.prefix + self.family.relative)
        by_distance = writer.weight(weights[distance_buckets(distances)], "relative")
        zero = writer.constant(np.array(0, dtype=np.int64), "zero")
        one = writer.constant(np.array(1, dtype=np.int64), "one")
        count = writer.op("Squeeze", self.token_count())
        steps = writer.op("Range", zero, count, one)
        shift = writer.constant(np.array(farthest, dtype=np.int64), "shift")
        away = writer.op("Sub", writer.reshape(steps, [1, -1]), writer.reshape(steps, [-1, 1]))
        rows = writer.op("Gather", by_distance, writer.op("Add", away, shift), axis=0)
        return writer.op("Transpose", rows, perm=[2, 0, 1])

    def layer(self, prefix: str, hidden: str, bias: str) -> str:
        """float32 [batch, tokens, hidden_size]: one layer applied to the same shape."""
        writer, family, prefix = self.writer, self.family, self.prefix + prefix
        attended = self.linear(prefix + family.attended, self.attend(prefix, hidden, bias))
        hidden = self.norm(prefix + family.attention_norm, writer.op("Add", attended, hidden))
        inner = self.linear(prefix + family.inner, hidden)
        inner = ACTIVATIONS[self.config.activation](writer, inner)
        outer = self.linear(prefix + family.outer, inner)
        return self.norm(prefix + family.output_norm, writer.op("Add", outer, hidden))

    def attend(self, prefix: str, hidden: str, bias: str) -> str:
        """float32 [batch, tokens, hidden_size]: attention applied to the same shape."""
        writer, config, family = self.writer, self.config, self.family
        query = self.split_heads(prefix + family.query, hidden, [0, 2, 1, 3])
        key = self.split_heads(prefix + family.key, hidden, [0, 2, 3, 1])
        value = self.split_heads(prefix + family.value, hidden, [0, 2, 1, 3])
        scale = writer.scalar(math.sqrt(config.hidden_size // config.heads))
        scores = writer.op("Div", writer.op("MatMul", query, key), scale)
        weights = writer.op("Softmax", writer.op("Add", scores, bias), axis=-1)
        mixed = writer.op("Transpose", writer.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return writer.reshape(mixed, [0, 0, config.hidden_size])

    def split_heads(self, name: str, hidden: str, order: list[int]) -> str:
        """Append a projection, with the axes batch, tokens, heads, head size in the given order."""
        config = self.config
        shape = [0, 0, config.heads, config.hidden_size // config.heads]
        projected = self.writer.reshape(self.linear(name, hidden), shape)
        return self.writer.op("Transpose", projected, perm=order)

    def linear(self, name: str, source: str, *, exact: bool = False) -> str:
        """Append a linear layer; an exact one is never quantised."""
        weight = self.weight(f"{name}.weight", transposed=True)
        node_name = f"{EXACT_PREFIX}product" if exact else ""
        product = self.writer.op("MatMul", source, weight, name=node_name)
        return self.writer.op("Add", product, self.weight(f"{name}.bias"))

    def norm(self, name: str, source: str) -> str:
        """Append a layer normalisation over the last axis."""
        scale, shift = (self.weight(f"{name}.{part}") for part in self.norm_names)
        return self.writer.layer_norm(source, scale, shift, epsilon=self.config.epsilon)

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """Write a tensor of the file, at its first use only."""
        if name not in self._present:
            values = self.tensors.read(name)
            self._present[name] = self.writer.weight(values.T if transposed else values, name)
        return self._present[name]
