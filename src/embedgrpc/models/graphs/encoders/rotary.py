"""Rotary position embeddings: queries and keys turn by an angle that grows with the position.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; the keys
of `config.json` and the scaling of frequencies as in transformers' `modeling_rope_utils`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.writer import GraphWriter

# The keys that each type of scaling has beside its name and the base.
_SCALING_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
         "original_max_position_embeddings", "truncate"}
    ),
}  # fmt: skip
# The frequencies of these types follow from the longest text of a batch.
_BY_LENGTH = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Rotation:
    """The angles by which vectors turn.

    Attributes:
        frequencies: float32 [size / 2]: radians per position, for each pair of values.
        scale: The length of a vector after turning, relative to that before.
    """

    frequencies: FloatArray
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RotationTables:
    """The cosines and sines of one graph, float32 [tokens, size / 2] each."""

    cosines: str
    sines: str


def read_rotation(
    parameters: JsonObject, *, size: int, base: float, positions: int | None
) -> Rotation:
    """Return the angles that a model's configuration sets.

    Args:
        parameters: `rope_parameters`, or the older `rope_scaling`; may be empty.
        size: Values per head.
        base: The base of the frequencies unless the parameters have another.
        positions: `max_position_embeddings`, which older configurations use for the length that
            the model was trained on.

    Raises:
        ModelError: A key or value is not supported.
    """
    kind = parameters.text("rope_type", default=parameters.text("type", default="default"))
    if kind in _BY_LENGTH:
        raise parameters.wrong(
            "rope_type",
            f"one of {', '.join(_SCALING_KEYS)}: with {kind}, a text's vector depends on the "
            "longest text of its batch",
        )
    if kind not in _SCALING_KEYS:
        raise parameters.wrong("rope_type", "one of " + ", ".join(_SCALING_KEYS))
    if parameters.number("partial_rotary_factor", default=1.0) != 1.0:
        raise parameters.wrong("partial_rotary_factor", "1")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALING_KEYS[kind]}
    unknown = sorted(
        key for key, value in parameters.values.items() if value is not None and key not in known
    )
    if unknown:
        raise parameters.wrong(unknown[0], f"absent where the rope_type is {kind}")
    base = parameters.number("rope_theta", default=base)
    if not 1 < base < math.inf:
        raise parameters.wrong("rope_theta", "more than 1")
    if size % 2:
        raise parameters.wrong("head_dim", "even")
    return _SCALINGS[kind](_Plain(parameters, size, base, positions))


def append_tables(writer: GraphWriter, rotation: Rotation, tokens: str) -> RotationTables:
    """Append the cosines and sines of all positions of a batch.

    Computed in the graph: a table of all positions that a model allows may be larger than a layer.

    Args:
        writer: The graph's writer.
        rotation: The angles.
        tokens: int64 [tokens], the positions.
    """
    steps = writer.reshape(writer.op("Cast", tokens, to=TensorProto.FLOAT), [-1, 1])
    angles = writer.op("Mul", steps, writer.weight(rotation.frequencies[None, :], "frequencies"))
    tables = [writer.op(kind, angles) for kind in ("Cos", "Sin")]
    if rotation.scale != 1.0:
        tables = [writer.op("Mul", table, writer.scalar(rotation.scale)) for table in tables]
    return RotationTables(*tables)


def append_rotation(writer: GraphWriter, source: str, tables: RotationTables) -> str:
    """Turn the vectors of all heads, float32 [batch, heads, tokens, size].

    ONNX Runtime's operator needs one pass over memory; the same in standard operators needs five.
    """
    first = writer.constant(np.array([0], np.int64), "first")
    return writer.microsoft("RotaryEmbedding", source, first, tables.cosines, tables.sines)


@dataclass(frozen=True, slots=True)
class _Plain:
    """What the scaled frequencies follow from."""

    parameters: JsonObject
    size: int
    base: float
    positions: int | None

    @property
    def exponents(self) -> FloatArray:
        """float32 [size / 2]."""
        return np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)

    @property
    def wavelengths(self) -> FloatArray:
        """float32 [size / 2]: positions per radian."""
        # The power in float64 and rounded is what torch's float32 power returns.
        return (np.float64(self.base) ** self.exponents.astype(np.float64)).astype(np.float32)

    @property
    def frequencies(self) -> FloatArray:
        """float32 [size / 2]: radians per position without scaling."""
        return (np.float32(1.0) / self.wavelengths).astype(np.float32)

    @property
    def factor(self) -> float:
        """How much longer texts may be than those that the model was trained on."""
        factor = self.parameters.number("factor", default=0.0)
        if not 1 <= factor < math.inf:
            raise self.parameters.wrong("factor", "a number of at least 1")
        return factor

    @property
    def trained_positions(self) -> int:
        """The length that the model was trained on."""
        length = self.parameters.count("original_max_position_embeddings") or self.positions
        if not length:
            raise self.parameters.wrong(
                "original_max_position_embeddings", "a whole number of at least 1"
            )
        return length


def _default(plain: _Plain) -> Rotation:
    return Rotation(plain.frequencies)


def _linear(plain: _Plain) -> Rotation:
    return Rotation(plain.frequencies / np.float32(plain.factor))


def _llama3(plain: _Plain) -> Rotation:
    """Slow frequencies only are scaled. Source: Llama 3.1."""
    low = plain.parameters.number("low_freq_factor", default=0.0)
    high = plain.parameters.number("high_freq_factor", default=0.0)
    if not 0 < low < high < math.inf:
        raise plain.parameters.wrong("high_freq_factor", "more than low_freq_factor, above 0")
    trained, factor = plain.trained_positions, np.float32(plain.factor)
    frequencies = plain.frequencies
    turns = np.float32(2 * math.pi) / frequencies
    slow = turns > trained / low
    scaled = np.where(slow, frequencies / factor, frequencies)
    smooth = (np.float32(trained) / turns - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(turns < trained / high) & ~slow
    return Rotation(np.where(medium, between, scaled).astype(np.float32))


def _yarn(plain: _Plain) -> Rotation:
    """Source: Peng et al., "YaRN: Efficient Context Window Extension", 2023."""
    parameters, factor, size = plain.parameters, plain.factor, plain.size

    def correction(turns: float) -> float:
        span = plain.trained_positions / (turns * 2 * math.pi)
        return size * math.log(span) / (2 * math.log(plain.base))

    low = correction(parameters.number("beta_fast", default=0.0) or 32)
    high = correction(parameters.number("beta_slow", default=0.0) or 1)
    if parameters.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # as in the source
    steps = np.arange(size // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    kept = 1 - ramp
    scaled = np.float32(1.0) / (np.float32(factor) * plain.wavelengths)
    frequencies = scaled * (1 - kept) + plain.frequencies * kept
    return Rotation(frequencies.astype(np.float32), _yarn_scale(parameters, factor))


def _yarn_scale(parameters: JsonObject, factor: float) -> float:
    given = parameters.values.get("attention_factor")
    if given is not None:
        return parameters.number("attention_factor", default=1.0)
    one = parameters.number("mscale", default=0.0)
    all_dimensions = parameters.number("mscale_all_dim", default=0.0)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(one) / scale(all_dimensions) if one and all_dimensions else scale(1.0)


_SCALINGS: Mapping[str, Callable[[_Plain], Rotation]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
