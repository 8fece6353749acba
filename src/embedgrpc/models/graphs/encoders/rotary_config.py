"""Reads the sizes of encoders with rotary positions from `config.json`.

Source: transformers' ModernBertConfig, NomicBertConfig and GteConfig; for the older keys, the code
beside the published models: configuration_hf_nomic_bert.py of nomic-ai/nomic-bert-2048, and
configuration.py of Alibaba-NLP/new-impl.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.config import read_activation, read_epsilon
from embedgrpc.models.graphs.encoders.rotary import Rotation, read_rotation

_FULL, _SLIDING = "full_attention", "sliding_attention"
# What the reference takes where `config.json` has no such key.
_GLOBAL_BASE, _LOCAL_BASE = 160_000.0, 10_000.0
_LOCAL_TOKENS = 128
_GLOBAL_EVERY = 3
_NOMIC_BASE = 1000.0
_GTE_BASE, _NEW_BASE = 160_000.0, 10_000.0


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """The sizes of an encoder with rotary positions.

    Attributes:
        hidden_size: Values per token vector.
        heads: Attention heads per layer.
        intermediate_size: Values per token inside a layer's feed-forward part.
        vocabulary_size: Rows of the token table.
        token_types: Rows of the token type table; 0 without one.
        epsilon: The epsilon of normalisations.
        activation: The gate's activation function.
        windows: For each layer: a token sees others nearer than this, on both sides; 0 for all.
        rotation: The angles of layers without a window.
        local_rotation: The angles of layers with one.
        attention_bias: Whether the products of attention have a bias.
        gate_bias: Whether the products before the gate have one.
        outer_bias: Whether the product after the gate has one.
        norm_bias: Whether normalisations have one.
        classifier_activation: The activation function between both layers of the head; empty if
            the family has only one.
        classifier_bias: Whether the head's first layer has a bias.
        classifier_mean: Whether the head scores the mean of a sequence, and not its first token.
    """

    hidden_size: int
    heads: int
    intermediate_size: int
    vocabulary_size: int
    token_types: int
    epsilon: float
    activation: str
    windows: tuple[int, ...]
    rotation: Rotation
    local_rotation: Rotation
    attention_bias: bool = False
    gate_bias: bool = False
    outer_bias: bool = False
    norm_bias: bool = True
    classifier_activation: str = ""
    classifier_bias: bool = True
    classifier_mean: bool = False

    @property
    def head_size(self) -> int:
        """Values per head."""
        return self.hidden_size // self.heads


def read_rotary_config(config: JsonObject) -> RotaryConfig:
    """Read `config.json` of one of the families.

    Raises:
        ModelError: A key is missing, or its value is not supported.
    """
    return _READERS[config.text("model_type", default="")](config)


def _read_modernbert(config: JsonObject) -> RotaryConfig:
    """Read the configuration of a ModernBERT.

    Raises:
        ModelError: A key is missing, or its value is not supported.
    """
    size = _read_head_size(config)
    positions = config.count("max_position_embeddings")
    given = config.table("rope_parameters")
    if config.values.get("rope_scaling"):
        raise config.wrong("rope_scaling", "null: put the scaling into rope_parameters")
    if given.keys() - {_FULL, _SLIDING}:
        raise config.wrong("rope_parameters", f"an object with {_FULL} and {_SLIDING}")
    nested = JsonObject(config.path, given)
    rotations = []
    for kind, key, base in (
        (_FULL, "global_rope_theta", _GLOBAL_BASE),
        (_SLIDING, "local_rope_theta", _LOCAL_BASE),
    ):
        parameters = JsonObject(config.path, nested.table(kind))
        own = config.number(key, default=base)
        rotations.append(read_rotation(parameters, size=size, base=own, positions=positions))
    pooling = config.text("classifier_pooling", default="cls")
    if pooling not in {"cls", "mean"}:
        raise config.wrong("classifier_pooling", "cls or mean")
    mlp_bias = config.flag("mlp_bias", default=False)
    return RotaryConfig(
        hidden_size=config.size("hidden_size"),
        heads=config.size("num_attention_heads"),
        intermediate_size=config.size("intermediate_size"),
        vocabulary_size=config.size("vocab_size"),
        token_types=0,
        epsilon=read_epsilon(config, "norm_eps", default=1e-5),
        activation=read_activation(config, "hidden_activation", default="gelu"),
        windows=_read_windows(config),
        rotation=rotations[0],
        local_rotation=rotations[1],
        attention_bias=config.flag("attention_bias", default=False),
        gate_bias=mlp_bias,
        outer_bias=mlp_bias,
        norm_bias=config.flag("norm_bias", default=False),
        classifier_activation=read_activation(config, "classifier_activation", default="gelu"),
        classifier_bias=config.flag("classifier_bias", default=False),
        classifier_mean=pooling == "mean",
    )


def _read_windows(config: JsonObject) -> tuple[int, ...]:
    layers = config.size("num_hidden_layers")
    kinds = config.values.get("layer_types")
    if kinds is None:
        every = config.count("global_attn_every_n_layers")
        every = _GLOBAL_EVERY if every is None else every
        if not every:
            raise config.wrong("global_attn_every_n_layers", "a whole number of at least 1")
        kinds = [_SLIDING if layer % every else _FULL for layer in range(layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or not all(kind in (_FULL, _SLIDING) for kind in kinds)
    ):
        raise config.wrong("layer_types", f"{layers} times {_FULL} or {_SLIDING}")
    tokens = config.count("local_attention")
    # As the reference: the number is the width of the window on both sides together.
    window = (_LOCAL_TOKENS if tokens is None else tokens) // 2 + 1
    return tuple(window if kind == _SLIDING else 0 for kind in kinds)


# The older keys of NomicBERT by those of transformers.
_NOMIC_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
}
# The only values of further older keys that transformers' class computes with.
_NOMIC_VALUES: dict[str, object] = {
    "activation_function": "swiglu",
    "prenorm": False,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "causal": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "use_rms_norm": False,
    "norm_mlp": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_head_dim": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def _read_nomic_bert(config: JsonObject) -> RotaryConfig:
    """Read the configuration of a NomicBERT, whose keys are those of transformers or older ones.

    Raises:
        ModelError: A key is missing, or its value is not supported.
    """
    _check_values(config, _NOMIC_VALUES)
    if config.values.get("rotary_scaling_factor") is not None:
        raise config.wrong(
            "rotary_scaling_factor",
            "null: with it, a text's vector depends on the longest text of its batch",
        )
    config = _rename(config, _NOMIC_NAMES)
    parameters = JsonObject(config.path, _read_parameters(config))
    base = config.number("rope_theta", default=_NOMIC_BASE)
    base = parameters.number("rope_theta", default=base)
    older = config.number("rotary_emb_base", default=base)
    if older != base and ("rope_theta" in config.values or parameters.values):
        raise config.wrong("rotary_emb_base", f"the rope_theta {base:g}")
    rotation = read_rotation(
        parameters,
        size=_read_head_size(config),
        base=older,
        positions=config.count("max_position_embeddings"),
    )
    multiple = config.count("pad_vocab_size_multiple") or 1
    types = config.count("type_vocab_size")
    if types == 0:
        raise config.wrong("type_vocab_size", "at least 1")
    plain = _read_plain(config, rotation, token_types=2 if types is None else types, gate="silu")
    return replace(plain, vocabulary_size=-(-plain.vocabulary_size // multiple) * multiple)


def _read_plain(
    config: JsonObject, rotation: Rotation, *, token_types: int, gate: str
) -> RotaryConfig:
    """Read what NomicBERT and gte name alike; `gate` is the default of its activation function."""
    return RotaryConfig(
        hidden_size=config.size("hidden_size"),
        heads=config.size("num_attention_heads"),
        intermediate_size=config.size("intermediate_size"),
        vocabulary_size=config.size("vocab_size"),
        token_types=token_types,
        epsilon=read_epsilon(config, "layer_norm_eps", default=1e-12),
        activation=read_activation(config, "hidden_act", default=gate),
        windows=(0,) * config.size("num_hidden_layers"),
        rotation=rotation,
        local_rotation=rotation,
    )


# The only values of these keys that transformers' class computes with.
_GTE_VALUES: dict[str, object] = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
}


def _read_gte(config: JsonObject) -> RotaryConfig:
    """Read the configuration of a gte model, of transformers' class or of the older code.

    Raises:
        ModelError: A key is missing, or its value is not supported.
    """
    _check_values(config, _GTE_VALUES)
    older = config.text("model_type", default="") == "new"
    size = _read_head_size(config)
    base = config.number("rope_theta", default=_NEW_BASE if older else _GTE_BASE)
    parameters = JsonObject(config.path, _read_parameters(config))
    if older:
        rotation = _read_ntk(parameters, size, base)
    else:
        positions = config.count("max_position_embeddings")
        rotation = read_rotation(parameters, size=size, base=base, positions=positions)
    types = config.count("type_vocab_size")
    if types is not None and types > 1:
        raise config.wrong("type_vocab_size", "0 or 1")
    plain = _read_plain(config, rotation, token_types=1 if types is None else types, gate="gelu")
    return replace(plain, attention_bias=True, outer_bias=True)


def _read_ntk(parameters: JsonObject, size: int, base: float) -> Rotation:
    """Read the scaling of the older code.

    It is fixed: it does not depend on the length of a text.

    Source: `NTKScalingRotaryEmbedding` in modeling.py of Alibaba-NLP/new-impl, after equations 6
    and 10 to 13 of https://kexue.fm/archives/9706.
    """
    kind = parameters.text("rope_type", default=parameters.text("type", default="default"))
    if kind == "default":
        return read_rotation(parameters, size=size, base=base, positions=None)
    if kind != "ntk":
        raise parameters.wrong("type", "ntk")
    unknown = sorted(parameters.values.keys() - {"type", "rope_type", "factor", "mixed_b"})
    if unknown:
        raise parameters.wrong(unknown[0], "absent where the type is ntk")
    factor = parameters.number("factor", default=0.0)
    if not 1 <= factor < math.inf:
        raise parameters.wrong("factor", "a number of at least 1")
    plain = JsonObject(parameters.path, {})
    mixed = parameters.values.get("mixed_b")
    if factor == 1:
        return read_rotation(plain, size=size, base=base, positions=None)
    if mixed is None:
        scaled = read_rotation(plain, size=size, base=base * factor, positions=None).frequencies
        return Rotation(scaled / np.float32(factor ** (2 / size)))
    frequencies = read_rotation(plain, size=size, base=base, positions=None).frequencies
    power = np.float32(parameters.number("mixed_b", default=0.0))
    slope = np.float32(math.log(factor)) / np.float32((size / 2) ** float(power))
    steps = np.arange(1, size // 2 + 1, dtype=np.float32)
    return Rotation((frequencies / np.exp(slope * steps**power)).astype(np.float32))


def _check_values(config: JsonObject, only: Mapping[str, object]) -> None:
    for key, value in only.items():
        if config.values.get(key) not in (None, value):
            raise config.wrong(key, str(value).lower())


def _read_parameters(config: JsonObject) -> dict[str, object]:
    """Return `rope_parameters`, or the older `rope_scaling`, which wins in the reference."""
    return dict(config.table("rope_scaling") or config.table("rope_parameters"))


def _rename(config: JsonObject, names: dict[str, str]) -> JsonObject:
    """Return a configuration with the older keys under their newer names.

    Raises:
        ModelError: It has both, and they differ.
    """
    values = dict(config.values)
    for newer, older in names.items():
        value = values.pop(older, None)
        if value is None:
            continue
        if values.get(newer) not in (None, value):
            raise config.wrong(older, f"the same as {newer}")
        values[newer] = value
    return JsonObject(config.path, values)


def _read_head_size(config: JsonObject) -> int:
    hidden_size, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden_size % heads:
        raise config.wrong("hidden_size", "a multiple of num_attention_heads")
    size = hidden_size // heads
    if config.count("head_dim") not in (None, size):
        raise config.wrong("head_dim", f"{size}, which is hidden_size over num_attention_heads")
    return size


# By `model_type` of config.json.
_READERS: Mapping[str, Callable[[JsonObject], RotaryConfig]] = {
    "modernbert": _read_modernbert,
    "nomic_bert": _read_nomic_bert,
    "gte": _read_gte,
    "new": _read_gte,
}
