"""Reads the sizes of a decoder from `config.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.config import read_activation
from embedgrpc.models.graphs.encoders.decoder_families import DecoderFamily, Windows
from embedgrpc.models.graphs.encoders.rotary import Rotation, read_rotation

FULL, SLIDING = "full_attention", "sliding_attention"
# Gemma 3's distance between layers without a window, if `config.json` has none.
_PATTERN = 6
# What the reference takes where `config.json` has no such key.
_EPSILON = 1e-6
_SCALAR = 256


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a decoder.

    Attributes:
        hidden_size: Values per token vector.
        heads: Attention heads per layer.
        key_heads: Heads of keys and values per layer, each of which several heads share.
        head_size: Values per head.
        intermediate_size: Values per token inside a layer's feed-forward part.
        vocabulary_size: Rows of the token table.
        epsilon: The epsilon of normalisations.
        activation: The gate's activation function.
        has_bias: Whether all products of attention have a bias.
        score_scale: What scores are multiplied by.
        causal: Whether a token sees only those before it.
        layer_types: `FULL` or `SLIDING` for each layer.
        window: A token sees others nearer than this, in layers of type `SLIDING`.
        rotations: By type of layer.
    """

    hidden_size: int
    heads: int
    key_heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    epsilon: float
    activation: str
    has_bias: bool
    score_scale: float
    causal: bool
    layer_types: tuple[str, ...]
    window: int
    rotations: Mapping[str, Rotation]

    @classmethod
    def read(cls, config: JsonObject, family: DecoderFamily) -> "DecoderConfig":
        """Read `config.json`, whose keys depend on the family.

        Raises:
            ModelError: A key is missing, or its value is not supported.
        """
        hidden_size, heads = config.size("hidden_size"), config.size("num_attention_heads")
        key_heads = config.count("num_key_value_heads") or heads
        if heads % key_heads:
            raise config.wrong("num_attention_heads", "a multiple of num_key_value_heads")
        head_size = config.count("head_dim") or family.head_size or hidden_size // heads
        if config.values.get("attn_logit_softcapping") is not None:
            raise config.wrong("attn_logit_softcapping", "null")
        epsilon = config.number("rms_norm_eps", default=_EPSILON)
        if not 0 < epsilon < 1:
            raise config.wrong("rms_norm_eps", "a small number")
        scalar = (
            config.number(family.scalar_key, default=_SCALAR) if family.scalar_key else head_size
        )
        if scalar <= 0:
            raise config.wrong(family.scalar_key, "more than 0")
        layer_types = _read_layer_types(config, family)
        key = family.bidirectional_key
        bidirectional = bool(key) and config.flag(key, default=False)
        causal = not bidirectional and config.flag("is_causal", default=True)
        window = config.count("sliding_window") or 0
        if SLIDING in layer_types:
            if not window:
                raise config.wrong("sliding_window", "a whole number of at least 1")
            if not causal and not bidirectional:
                raise config.wrong("is_causal", "true where layers have a sliding_window")
        if bidirectional:
            # As the reference: the number is the width of the window on both sides together.
            window = window // 2 + 1
        return cls(
            hidden_size=hidden_size,
            heads=heads,
            key_heads=key_heads,
            head_size=head_size,
            intermediate_size=config.size("intermediate_size"),
            vocabulary_size=config.size("vocab_size"),
            epsilon=epsilon,
            activation=_read_activation(config, family),
            has_bias=bool(family.bias_key) and config.flag(family.bias_key, default=False),
            score_scale=scalar**-0.5,
            causal=causal,
            layer_types=layer_types,
            window=window,
            rotations=_read_rotations(config, family, layer_types, head_size),
        )


def _read_activation(config: JsonObject, family: DecoderFamily) -> str:
    name = read_activation(config, family.activation_key, default=family.activation)
    # Source: `GemmaConfig`, whose first files have the wrong name.
    return family.activation if family.tanh_gelu and name == "gelu" else name


def _read_layer_types(config: JsonObject, family: DecoderFamily) -> tuple[str, ...]:
    layers = config.size("num_hidden_layers")
    given = config.values.get("layer_types")
    if given is not None:
        return _check_layer_types(config, family, given, layers)
    if family.windows is Windows.ALL:
        return (SLIDING if config.count("sliding_window") else FULL,) * layers
    if family.windows is Windows.PATTERN:
        pattern = config.count("sliding_window_pattern") or _PATTERN
        return tuple(SLIDING if (layer + 1) % pattern else FULL for layer in range(layers))
    if family.windows is Windows.NONE or not config.flag("use_sliding_window", default=False):
        return (FULL,) * layers
    first = config.count("max_window_layers")
    if first is None:
        raise config.wrong("max_window_layers", "a whole number of at least 0")
    return tuple(SLIDING if layer >= first else FULL for layer in range(layers))


def _check_layer_types(
    config: JsonObject, family: DecoderFamily, given: object, layers: int
) -> tuple[str, ...]:
    allowed = {FULL, SLIDING} if family.windows in {Windows.LAST, Windows.PATTERN} else {FULL}
    if family.windows is Windows.LAST and not config.flag("use_sliding_window", default=False):
        allowed = {FULL}
    if not isinstance(given, list) or len(given) != layers or not allowed.issuperset(given):
        raise config.wrong("layer_types", f"{layers} times {' or '.join(sorted(allowed))}")
    return tuple(given)


def _read_rotations(
    config: JsonObject, family: DecoderFamily, layer_types: Sequence[str], head_size: int
) -> Mapping[str, Rotation]:
    positions = config.count("max_position_embeddings")
    base = config.number("rope_theta", default=family.base)
    given, older = config.table("rope_parameters"), config.table("rope_scaling")
    if not family.local_base:
        parameters = JsonObject(config.path, older or given)
        rotation = read_rotation(parameters, size=head_size, base=base, positions=positions)
        return dict.fromkeys({*layer_types}, rotation)
    # The older keys hold the scaling of layers without a window, and one base for each type.
    local_base = config.number("rope_local_base_freq", default=family.local_base)
    unknown = sorted(given.keys() - {FULL, SLIDING})
    if unknown:
        raise config.wrong("rope_parameters", f"an object with {FULL} and {SLIDING}")
    nested = JsonObject(config.path, given)
    full = JsonObject(config.path, {**nested.table(FULL), **older})
    sliding = JsonObject(config.path, nested.table(SLIDING))
    for parameters in (full, sliding):
        # The reference looks for this one key outside of both objects.
        if not parameters.flag("truncate", default=True):
            raise parameters.wrong("truncate", "true")
    return {
        FULL: read_rotation(full, size=head_size, base=base, positions=positions),
        SLIDING: read_rotation(sliding, size=head_size, base=local_base, positions=positions),
    }
