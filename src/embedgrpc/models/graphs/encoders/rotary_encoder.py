"""Builds encoders with rotary positions from their weights, with or without a classifier.

Source: Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder", 2024, for
ModernBERT; Nussbaum et al., "Nomic Embed", 2024; Zhang et al., "mGTE", 2024. `rotary_families`
lists the differences between families.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS
from embedgrpc.models.graphs.encoders.attention_bias import (
    LOWEST,
    append_attention_bias,
    append_sight,
)
from embedgrpc.models.graphs.encoders.families import TokenTypes
from embedgrpc.models.graphs.encoders.gated_mlp import append_gated
from embedgrpc.models.graphs.encoders.rotary import RotationTables, append_rotation, append_tables
from embedgrpc.models.graphs.encoders.rotary_config import RotaryConfig, read_rotary_config
from embedgrpc.models.graphs.encoders.rotary_families import Part, RotaryFamily
from embedgrpc.models.graphs.encoders.shapes import Shapes, check_layer_count
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.weights import Tensors


def build_rotary_encoder(
    writer: GraphWriter,
    tensors: Tensors,
    config: JsonObject,
    family: RotaryFamily,
    *,
    has_unattended: bool = False,
) -> str:
    """Append the backbone to a graph with the inputs of the family; see `build_backbone`."""
    encoder = _Encoder(writer, tensors, read_rotary_config(config), family)
    encoder.has_unattended = has_unattended
    older = "n_layer"
    check_layer_count(tensors, config, older if older in config.values else "num_hidden_layers")
    tensors.check(encoder.shapes())
    return encoder.build()


def build_rotary_classifier(
    writer: GraphWriter,
    tensors: Tensors,
    config: JsonObject,
    family: RotaryFamily,
    hidden: str,
    *,
    label_count: int,
) -> str:
    """Append the head that scores a sequence; see `encoder.build_classifier`."""
    encoder = _Encoder(writer, tensors, read_rotary_config(config), family)
    tensors.check(encoder.classifier_shapes(label_count))
    return encoder.classify(hidden)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The tokens that each token sees: a mask or a bias, the other one is empty.

    Attributes:
        mask: int32 [batch, tokens]; 1 for a token that all tokens see.
        bias: float32 [batch, 1, tokens, tokens], added to scores.
        sight: float32 [batch, tokens, 1]: which tokens see any; empty if all do that count.
    """

    mask: str = ""
    bias: str = ""
    sight: str = ""


class _Encoder:
    """The parts of a model; each method appends one and returns the name of its result."""

    def __init__(
        self, writer: GraphWriter, tensors: Tensors, config: RotaryConfig, family: RotaryFamily
    ) -> None:
        self.writer = writer
        self.tensors = tensors
        self.config = config
        self.family = family
        self.has_unattended = False
        names = tensors.names
        prefixes = [one for one in family.prefixes if any(name.startswith(one) for name in names)]
        self.prefix = prefixes[0] if prefixes else ""

    def shapes(self) -> Shapes:
        """Return the shape of each tensor of the backbone."""
        config, family = self.config, self.family
        size, inner = config.hidden_size, config.intermediate_size
        shapes: Shapes = {f"{family.words}.weight": (config.vocabulary_size, size)}
        if config.token_types:
            shapes[f"{family.types}.weight"] = (config.token_types, size)
        norms = [family.embedding_norm]
        if family.final_norm:
            norms.append(family.final_norm)
        linears: dict[str, tuple[int, int, bool]] = {}
        for number in range(len(config.windows)):
            layer = family.layer.format(number)
            linears[layer + family.packed] = (3 * size, size, config.attention_bias)
            linears[layer + family.attended] = (size, size, config.attention_bias)
            for part in (family.gate, family.values):
                linears[layer + part.name] = (part.of * inner, size, config.gate_bias)
            linears[layer + family.outer] = (size, inner, config.outer_bias)
            if number or not family.final_norm:
                norms.append(layer + family.attention_norm)
            norms.append(layer + family.output_norm)
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{name}.bias"] = (rows,)
        for name in norms:
            shapes |= self.norm_shapes(name)
        return {self.prefix + name: shape for name, shape in shapes.items()}

    def norm_shapes(self, name: str) -> Shapes:
        """Return the shape of each tensor of a normalisation."""
        parts = ("weight", "bias") if self.config.norm_bias else ("weight",)
        return {f"{name}.{part}": (self.config.hidden_size,) for part in parts}

    def classifier_shapes(self, label_count: int) -> Shapes:
        """Return the shape of each tensor of the head."""
        size, head = self.config.hidden_size, self.family.classifier
        shapes: Shapes = {f"{self.dense}.weight": (size, size)}
        if self.config.classifier_bias:
            shapes[f"{self.dense}.bias"] = (size,)
        if self.family.classifier_norm:
            shapes |= self.norm_shapes(self.family.classifier_norm)
        return {
            **shapes,
            f"{head.out}.weight": (label_count, size),
            f"{head.out}.bias": (label_count,),
        }

    @property
    def dense(self) -> str:
        """The name of the head's first layer."""
        head = self.family.classifier
        return (self.prefix if head.in_backbone else "") + head.dense

    def build(self) -> str:
        """float32 [batch, tokens, hidden_size]: the token vectors."""
        writer, config, family = self.writer, self.config, self.family
        hidden = self.embed()
        shape = writer.op("Shape", "input_ids")
        zero, one = (writer.constant(np.array(n, np.int64), "number") for n in (0, 1))
        tokens = writer.op("Gather", shape, one)
        positions = writer.op("Range", zero, tokens, one)
        seen, tables = {}, {}
        for window in sorted(set(config.windows)):
            seen[window] = self.see(positions, window)
            rotation = config.local_rotation if window else config.rotation
            tables[window] = append_tables(writer, rotation, positions)
        for number, window in enumerate(config.windows):
            layer = self.prefix + family.layer.format(number)
            source = hidden
            if family.final_norm and number:
                source = self.norm(layer + family.attention_norm, hidden)
            attended = self.attend(layer, source, seen[window], tables[window])
            hidden = writer.op("Add", hidden, attended)
            if family.final_norm:
                fed = self.feed(layer, self.norm(layer + family.output_norm, hidden))
                hidden = writer.op("Add", hidden, fed)
            else:
                hidden = self.norm(layer + family.attention_norm, hidden)
                hidden = writer.op("Add", hidden, self.feed(layer, hidden))
                hidden = self.norm(layer + family.output_norm, hidden)
        return self.norm(self.prefix + family.final_norm, hidden) if family.final_norm else hidden

    def see(self, positions: str, window: int) -> _Seen:
        """Append the choice of the tokens that each token sees."""
        if window:
            bias = append_attention_bias(self.writer, positions, causal=False, window=window)
            sight = append_sight(self.writer, bias) if self.has_unattended else ""
            return _Seen(bias=bias, sight=sight)
        return _Seen(mask=self.writer.op("Cast", "attention_mask", to=TensorProto.INT32))

    def embed(self) -> str:
        """float32 [batch, tokens, hidden_size]: the rows of the tables."""
        writer, family = self.writer, self.family
        name = f"{self.prefix}{family.words}.weight"
        table = writer.weight(self.tensors.read(name), name)
        rows = writer.op("Gather", table, "input_ids", axis=0)
        if self.config.token_types:
            name = f"{self.prefix}{family.types}.weight"
            types = self.tensors.read(name)
            if family.token_types is TokenTypes.INPUT:
                table = writer.weight(types, name)
                added = writer.op("Gather", table, "token_type_ids", axis=0)
            else:
                added = writer.weight(types[:1], name)
            rows = writer.op("Add", rows, added)
        return self.norm(self.prefix + family.embedding_norm, rows)

    def attend(self, layer: str, source: str, seen: _Seen, tables: RotationTables) -> str:
        """float32 [batch, tokens, hidden_size]: attention applied to the same shape."""
        writer, config, family = self.writer, self.config, self.family
        query, key, value = (
            self.linear(
                layer, Part(family.packed, place, 3), source, has_bias=config.attention_bias
            )
            for place in range(3)
        )
        # One operator with one buffer of scores. In standard operators, which ONNX Runtime fuses
        # for BERT alone, scores are scaled, biased and normalised in passes of their own.
        mixed = writer.microsoft(
            "MultiHeadAttention",
            append_rotation(writer, query, tables),
            append_rotation(writer, key, tables),
            value,
            "",
            seen.mask,
            seen.bias,
            num_heads=config.heads,
            mask_filter_value=LOWEST,
        )
        if seen.sight:
            mixed = writer.op("Mul", mixed, seen.sight)
        return self.linear(layer, Part(family.attended), mixed, has_bias=config.attention_bias)

    def feed(self, layer: str, source: str) -> str:
        """float32 [batch, tokens, hidden_size]: the feed-forward part applied to the same shape."""
        config, family = self.config, self.family
        gate, values = (
            self.linear(layer, part, source, has_bias=config.gate_bias)
            for part in (family.gate, family.values)
        )
        inner = append_gated(self.writer, gate, values, activation=config.activation)
        return self.linear(layer, Part(family.outer), inner, has_bias=config.outer_bias)

    def classify(self, hidden: str) -> str:
        """float32 [batch, labels]: the head applied to token vectors."""
        writer, config, family = self.writer, self.config, self.family
        head = family.classifier
        if config.classifier_mean:
            pooled = self.mean(hidden)
        else:
            pooled = writer.op(
                "Gather", hidden, writer.constant(np.array(0, np.int64), "first"), axis=1
            )
        inner = self.linear(
            "", Part(self.dense), pooled, has_bias=config.classifier_bias, exact=True
        )
        if config.classifier_activation:
            inner = ACTIVATIONS[config.classifier_activation](writer, inner)
        else:
            inner = writer.op(head.activation, inner)
        if family.classifier_norm:
            inner = self.norm(family.classifier_norm, inner)
        return self.linear("", Part(head.out), inner, has_bias=True, exact=True)

    def mean(self, hidden: str) -> str:
        """float32 [batch, hidden_size]: the mean of the real tokens."""
        writer = self.writer
        mask = writer.op("Cast", "attention_mask", to=TensorProto.FLOAT)
        total = writer.op("MatMul", writer.reshape(mask, [0, 1, -1]), hidden)
        total = writer.reshape(total, [0, self.config.hidden_size])
        return writer.op("Div", total, writer.reduce("ReduceSum", mask, -1))

    def linear(
        self, layer: str, part: Part, source: str, *, has_bias: bool, exact: bool = False
    ) -> str:
        """Append a product; an exact one is never quantised."""
        writer, name = self.writer, layer + part.name
        weight = self.read(f"{name}.weight", part)
        node_name = f"{EXACT_PREFIX}product" if exact else ""
        product = writer.op("MatMul", source, writer.weight(weight.T, name), name=node_name)
        if not has_bias:
            return product
        bias = writer.weight(self.read(f"{name}.bias", part), f"{name}.bias")
        return writer.op("Add", product, bias)

    def read(self, name: str, part: Part) -> FloatArray:
        """Read the rows of a part."""
        values = self.tensors.read(name)
        rows = len(values) // part.of
        return values[part.place * rows : (part.place + 1) * rows]

    def norm(self, name: str, source: str) -> str:
        """Append a layer normalisation over the last axis."""
        scale = self.tensors.read(f"{name}.weight")
        # Without a bias, zeros: ONNX Runtime fuses only normalisations that have one.
        shift = self.tensors.read(f"{name}.bias") if self.config.norm_bias else np.zeros_like(scale)
        return self.writer.layer_norm(
            source,
            self.writer.weight(scale, f"{name}.weight"),
            self.writer.weight(shift, f"{name}.bias"),
            epsilon=self.config.epsilon,
        )
