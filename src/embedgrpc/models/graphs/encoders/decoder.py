"""Builds decoders from their weights, with or without a classifier.

Source: Touvron et al., "LLaMA", 2023, for the structure; `decoder_families` lists the differences
between families.
"""

import math

import numpy as np

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.attention_bias import append_attention_bias, append_sight
from embedgrpc.models.graphs.encoders.decoder_config import SLIDING, DecoderConfig
from embedgrpc.models.graphs.encoders.decoder_families import DecoderFamily
from embedgrpc.models.graphs.encoders.gated_mlp import append_gated
from embedgrpc.models.graphs.encoders.rms_norm import append_rms_norm
from embedgrpc.models.graphs.encoders.rotary import RotationTables, append_rotation, append_tables
from embedgrpc.models.graphs.encoders.shapes import Shapes, check_layer_count
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.tensors.weights import Tensors

# Prefix of the backbone's tensors in a file that also holds a head.
_PREFIX = "model."
_NORMS = ("input_layernorm", "post_attention_layernorm")
_OUTER_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


def build_decoder(
    writer: GraphWriter,
    tensors: Tensors,
    config: JsonObject,
    family: DecoderFamily,
    *,
    has_unattended: bool = False,
) -> str:
    """Append the backbone to a graph with the inputs of the family; see `build_backbone`.

    Padding may be on either side: only the distance between two tokens counts.
    """
    decoder = _Decoder(
        writer,
        tensors,
        DecoderConfig.read(config, family),
        family,
        has_unattended=has_unattended,
    )
    check_layer_count(tensors, config, "num_hidden_layers")
    tensors.check(decoder.shapes())
    return decoder.build()


class _Decoder:
    """The parts of a backbone; each method appends one and returns the name of its result."""

    def __init__(
        self,
        writer: GraphWriter,
        tensors: Tensors,
        config: DecoderConfig,
        family: DecoderFamily,
        *,
        has_unattended: bool,
    ) -> None:
        self.has_unattended = has_unattended
        self.writer = writer
        self.tensors = tensors
        self.config = config
        self.family = family
        prefixed = any(name.startswith(_PREFIX) for name in tensors.names)
        self.prefix = _PREFIX if prefixed else ""

    def shapes(self) -> Shapes:
        """Return the shape of each tensor."""
        config, family = self.config, self.family
        size, inner = config.hidden_size, config.intermediate_size
        heads, key_heads = (count * config.head_size for count in (config.heads, config.key_heads))
        shapes: Shapes = {
            "embed_tokens.weight": (config.vocabulary_size, size),
            "norm.weight": (size,),
        }
        for number in range(len(config.layer_types)):
            layer = f"layers.{number}."
            for name, rows in (("q", heads), ("k", key_heads), ("v", key_heads)):
                shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, size)
                if family.input_bias or config.has_bias:
                    shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
            shapes[f"{layer}self_attn.o_proj.weight"] = (size, heads)
            if config.has_bias:
                shapes[f"{layer}self_attn.o_proj.bias"] = (size,)
            if family.head_norms:
                for name in ("q_norm", "k_norm"):
                    shapes[f"{layer}self_attn.{name}.weight"] = (config.head_size,)
            for name in ("gate_proj", "up_proj"):
                shapes[f"{layer}mlp.{name}.weight"] = (inner, size)
            shapes[f"{layer}mlp.down_proj.weight"] = (size, inner)
            for name in (*_NORMS, *(_OUTER_NORMS if family.outer_norms else ())):
                shapes[f"{layer}{name}.weight"] = (size,)
        return {self.prefix + name: shape for name, shape in shapes.items()}

    def build(self) -> str:
        """float32 [batch, tokens, hidden_size]."""
        config, hidden, positions = self.config, self.embed(), self.positions()
        biases, tables, sights = {}, {}, {}
        for kind in sorted({*config.layer_types}):
            window = config.window if kind == SLIDING else 0
            biases[kind] = append_attention_bias(
                self.writer, positions, causal=config.causal, window=window
            )
            tables[kind] = append_tables(self.writer, config.rotations[kind], positions)
            blind = window and self.has_unattended
            sights[kind] = append_sight(self.writer, biases[kind]) if blind else ""
        for number, kind in enumerate(config.layer_types):
            hidden = self.layer(
                f"layers.{number}.", hidden, biases[kind], tables[kind], sights[kind]
            )
        return self.norm("norm", hidden)

    def embed(self) -> str:
        """float32 [batch, tokens, hidden_size]."""
        name = f"{self.prefix}embed_tokens.weight"
        table = self.writer.weight(self.tensors.read(name), name)
        rows = self.writer.op("Gather", table, "input_ids", axis=0)
        if not self.family.scaled_embeddings:
            return rows
        return self.writer.op("Mul", rows, self.writer.scalar(math.sqrt(self.config.hidden_size)))

    def positions(self) -> str:
        """int64 [tokens]: 0, 1, 2 and so on, padding included."""
        writer = self.writer
        zero, one = (writer.constant(np.array(value, np.int64), "step") for value in (0, 1))
        count = writer.op("Gather", writer.op("Shape", "input_ids"), one, axis=0)
        return writer.op("Range", zero, count, one)

    def layer(self, prefix: str, hidden: str, bias: str, tables: RotationTables, sight: str) -> str:
        """float32 [batch, tokens, hidden_size]: one layer applied to the same shape."""
        writer = self.writer
        before, after = (prefix + name for name in _NORMS)
        attended = self.attend(
            f"{prefix}self_attn.", self.norm(before, hidden), bias, tables, sight
        )
        if not self.family.outer_norms:
            hidden = writer.op("Add", hidden, attended)
            return writer.op("Add", hidden, self.feed(f"{prefix}mlp.", self.norm(after, hidden)))
        inner, outer = (prefix + name for name in _OUTER_NORMS)
        hidden = writer.op("Add", hidden, self.norm(after, attended))
        fed = self.feed(f"{prefix}mlp.", self.norm(inner, hidden))
        return writer.op("Add", hidden, self.norm(outer, fed))

    def attend(
        self, prefix: str, source: str, bias: str, tables: RotationTables, sight: str
    ) -> str:
        """float32 [batch, tokens, hidden_size]: attention applied to the same shape."""
        writer, config = self.writer, self.config
        heads, key_heads, size = config.heads, config.key_heads, config.head_size
        query = self.split_heads(f"{prefix}q_proj", source, heads, norm=f"{prefix}q_norm")
        key = self.split_heads(f"{prefix}k_proj", source, key_heads, norm=f"{prefix}k_norm")
        value = self.split_heads(f"{prefix}v_proj", source, key_heads)
        query, key = (append_rotation(writer, source, tables) for source in (query, key))
        # The heads that share a key stand below one another: keys and values are not copied.
        shared = writer.reshape(query, [0, key_heads, -1, size])
        scores = writer.op("MatMul", shared, writer.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = writer.op("Mul", scores, writer.scalar(config.score_scale))
        scores = writer.op("Add", writer.reshape(scores, [0, heads, -1, 0]), bias)
        weights = writer.reshape(writer.op("Softmax", scores, axis=-1), [0, key_heads, -1, 0])
        context = writer.reshape(writer.op("MatMul", weights, value), [0, heads, -1, size])
        context = writer.op("Transpose", context, perm=[0, 2, 1, 3])
        joined = writer.reshape(context, [0, 0, heads * size])
        if sight:
            joined = writer.op("Mul", joined, sight)
        return self.linear(f"{prefix}o_proj", joined, has_bias=config.has_bias)

    def split_heads(self, name: str, source: str, heads: int, *, norm: str = "") -> str:
        """float32 [batch, heads, tokens, head_size]: queries, keys or values."""
        has_bias = self.family.input_bias or self.config.has_bias
        product = self.linear(name, source, has_bias=has_bias)
        split = self.writer.reshape(product, [0, 0, heads, self.config.head_size])
        if self.family.head_norms and norm:
            split = self.norm(norm, split)
        return self.writer.op("Transpose", split, perm=[0, 2, 1, 3])

    def feed(self, prefix: str, source: str) -> str:
        """float32 [batch, tokens, hidden_size]: the feed-forward part applied to the same shape."""
        gate, values = (self.linear(f"{prefix}{name}_proj", source) for name in ("gate", "up"))
        inner = append_gated(self.writer, gate, values, activation=self.config.activation)
        return self.linear(f"{prefix}down_proj", inner)

    def linear(self, name: str, source: str, *, has_bias: bool = False) -> str:
        """float32 [..., out_features], from [..., in_features]."""
        name = self.prefix + name
        weight = self.tensors.read(f"{name}.weight").T
        product = self.writer.op("MatMul", source, self.writer.weight(weight, f"{name}.weight"))
        if not has_bias:
            return product
        bias = self.writer.weight(self.tensors.read(f"{name}.bias"), f"{name}.bias")
        return self.writer.op("Add", product, bias)

    def norm(self, name: str, source: str) -> str:
        """float32 [..., size]: a normalisation applied to the same shape."""
        name = f"{self.prefix}{name}.weight"
        values = self.tensors.read(name)
        if self.family.offset_norms:
            values = np.float32(1.0) + values
        scale = self.writer.weight(values, name)
        return append_rms_norm(self.writer, source, scale, epsilon=self.config.epsilon)
