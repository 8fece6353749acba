"""Builds BERT from its safetensors, with or without the head that classifies.

Architectures `BertModel` and `BertForSequenceClassification` with one label.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018; names of the
tensors as in Hugging Face transformers.
"""

import math
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from embedgrpc.models.activations import ACTIVATIONS
from embedgrpc.models.bert_config import BertConfig
from embedgrpc.models.graph_writer import GraphWriter
from embedgrpc.models.json_file import JsonObject
from embedgrpc.models.weights import TensorFile

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def build(writer: GraphWriter, tensors: TensorFile, config: JsonObject) -> str:
    """Adds the backbone to a graph whose inputs are `INPUTS`, int64 [batch, tokens] each.

    Args:
        writer: Of the graph.
        tensors: The weights.
        config: `config.json`.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size].

    Raises:
        ModelError: The weights do not fit the configuration, or it is not supported.
    """
    bert = _Bert(writer, tensors, BertConfig.read(config))
    hidden = bert.embed()
    bias = bert.attention_bias()
    for layer in range(bert.config.layers):
        hidden = bert.layer(f"encoder.layer.{layer}.", hidden, bias)
    return hidden


def build_classifier(
    writer: GraphWriter, tensors: TensorFile, config: JsonObject, hidden: str
) -> str:
    """Adds the head that scores a sequence by its first token.

    Args:
        writer: Of the graph.
        tensors: The weights.
        config: `config.json`.
        hidden: float32 [batch, tokens, hidden_size].

    Returns:
        The name of the logits, float32 [batch, 1].

    Raises:
        ModelError: The weights do not fit the configuration.
    """
    sizes = BertConfig.read(config)
    prefix = _find_prefix(tensors)
    pooler = f"{prefix}pooler.dense."
    size = sizes.hidden_size
    tensors.check(
        {
            f"{pooler}weight": (size, size),
            f"{pooler}bias": (size,),
            "classifier.weight": (1, size),
            "classifier.bias": (1,),
        }
    )
    first = writer.op("Gather", hidden, writer.constant(np.array(0, np.int64), "first"), axis=1)
    pooled = writer.op("Tanh", _linear(writer, tensors, pooler, first))
    return _linear(writer, tensors, "classifier.", pooled)


class _Bert:
    """The parts of the backbone."""

    def __init__(self, writer: GraphWriter, tensors: TensorFile, config: BertConfig) -> None:
        self.writer = writer
        self.tensors = tensors
        self.config = config
        self.prefix = _find_prefix(tensors)
        self.norm_names = _find_norm_names(tensors)
        tensors.check({self.prefix + name: shape for name, shape in self.shapes().items()})

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors that the backbone needs."""
        config = self.config
        size, inner = config.hidden_size, config.intermediate_size
        scale, shift = self.norm_names
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config.vocabulary_size, size),
            "embeddings.position_embeddings.weight": (config.positions, size),
            "embeddings.token_type_embeddings.weight": (config.token_types, size),
            f"embeddings.LayerNorm.{scale}": (size,),
            f"embeddings.LayerNorm.{shift}": (size,),
        }
        linears = {
            "attention.self.query": (size, size),
            "attention.self.key": (size, size),
            "attention.self.value": (size, size),
            "attention.output.dense": (size, size),
            "intermediate.dense": (inner, size),
            "output.dense": (size, inner),
        }
        for layer in range(config.layers):
            prefix = f"encoder.layer.{layer}."
            for name, shape in linears.items():
                shapes[f"{prefix}{name}.weight"] = shape
                shapes[f"{prefix}{name}.bias"] = shape[:1]
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"{prefix}{name}.{scale}"] = (size,)
                shapes[f"{prefix}{name}.{shift}"] = (size,)
        return shapes

    def embed(self) -> str:
        """float32 [batch, tokens, hidden_size]."""
        writer = self.writer
        words = writer.op("Gather", self.table("word"), "input_ids", axis=0)
        types = writer.op("Gather", self.table("token_type"), "token_type_ids", axis=0)
        start = writer.constant(np.array([0], dtype=np.int64), "start")
        shape = writer.op("Shape", "input_ids")
        end = writer.op("Gather", shape, writer.constant(np.array([1], dtype=np.int64), "axis"))
        positions = writer.op("Slice", self.table("position"), start, end, start)
        summed = writer.op("Add", writer.op("Add", words, types), positions)
        return self.norm("embeddings.LayerNorm.", summed)

    def table(self, kind: str) -> str:
        """A table of embeddings, float32 [rows, hidden_size]."""
        name = f"{self.prefix}embeddings.{kind}_embeddings.weight"
        return self.writer.weight(self.tensors.read(name), name)

    def attention_bias(self) -> str:
        """float32 [batch, 1, 1, tokens]: 0 for a real token, else so low that it is left out."""
        writer = self.writer
        mask = writer.op("Cast", "attention_mask", to=TensorProto.FLOAT)
        padding = writer.op("Sub", writer.scalar(1.0), writer.reshape(mask, [0, 1, 1, -1]))
        return writer.op("Mul", padding, writer.scalar(float(np.finfo(np.float32).min)))

    def layer(self, prefix: str, hidden: str, bias: str) -> str:
        """float32 [batch, tokens, hidden_size], from the same."""
        writer = self.writer
        attended = self.linear(
            f"{prefix}attention.output.dense.", self.attend(prefix, hidden, bias)
        )
        hidden = self.norm(
            f"{prefix}attention.output.LayerNorm.", writer.op("Add", attended, hidden)
        )
        inner = self.linear(f"{prefix}intermediate.dense.", hidden)
        inner = ACTIVATIONS[self.config.activation](writer, inner)
        outer = self.linear(f"{prefix}output.dense.", inner)
        return self.norm(f"{prefix}output.LayerNorm.", writer.op("Add", outer, hidden))

    def attend(self, prefix: str, hidden: str, bias: str) -> str:
        """float32 [batch, tokens, hidden_size], from the same."""
        writer, config = self.writer, self.config
        query = self.split_heads(f"{prefix}attention.self.query.", hidden, [0, 2, 1, 3])
        key = self.split_heads(f"{prefix}attention.self.key.", hidden, [0, 2, 3, 1])
        value = self.split_heads(f"{prefix}attention.self.value.", hidden, [0, 2, 1, 3])
        scale = writer.scalar(math.sqrt(config.hidden_size // config.heads))
        scores = writer.op("Div", writer.op("MatMul", query, key), scale)
        weights = writer.op("Softmax", writer.op("Add", scores, bias), axis=-1)
        mixed = writer.op("Transpose", writer.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return writer.reshape(mixed, [0, 0, config.hidden_size])

    def split_heads(self, prefix: str, hidden: str, order: list[int]) -> str:
        """A projection in the given order of the axes batch, tokens, heads, head size."""
        config = self.config
        shape = [0, 0, config.heads, config.hidden_size // config.heads]
        projected = self.writer.reshape(self.linear(prefix, hidden), shape)
        return self.writer.op("Transpose", projected, perm=order)

    def linear(self, name: str, source: str) -> str:
        """A fully connected layer of the backbone."""
        return _linear(self.writer, self.tensors, self.prefix + name, source)

    def norm(self, name: str, source: str) -> str:
        """A layer normalisation over the last axis."""
        scale, shift = (
            self.writer.weight(self.tensors.read(f"{self.prefix}{name}{part}"), name + part)
            for part in self.norm_names
        )
        return self.writer.op(
            "LayerNormalization", source, scale, shift, axis=-1, epsilon=self.config.epsilon
        )


def _find_prefix(tensors: TensorFile) -> str:
    return "bert." if any(name.startswith("bert.") for name in tensors.names) else ""


def _find_norm_names(tensors: TensorFile) -> tuple[str, str]:
    # Checkpoints that were converted from TensorFlow keep its names.
    old = any(name.endswith("LayerNorm.gamma") for name in tensors.names)
    return ("gamma", "beta") if old else ("weight", "bias")


def _linear(writer: GraphWriter, tensors: TensorFile, name: str, source: str) -> str:
    weight = writer.weight(tensors.read(f"{name}weight").T, f"{name}weight")
    bias = writer.weight(tensors.read(f"{name}bias"), f"{name}bias")
    return writer.op("Add", writer.op("MatMul", source, weight), bias)
