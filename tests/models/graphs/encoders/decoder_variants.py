"""Tiny decoders, each with one thing that differs; weights follow from a seed."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY, SIZE, INNER, LAYERS, HEADS, HEAD_SIZE = 97, 24, 40, 3, 4, 12
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
}
_QWEN2 = {**_COMMON, "model_type": "qwen2", "hidden_act": "silu", "head_dim": HEAD_SIZE}
_QWEN3 = {**_QWEN2, "model_type": "qwen3"}
_MISTRAL = {**_QWEN2, "model_type": "mistral"}
_GEMMA = {
    **_COMMON,
    "model_type": "gemma3_text",
    "head_dim": HEAD_SIZE,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 20,
    "sliding_window": 10,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Each is a `config.json`.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2": _QWEN2,
    "qwen2 both directions": {**_QWEN2, "is_causal": False},
    "qwen2 windows": {
        **_QWEN2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
    },
    "qwen2 unused window": {**_QWEN2, "use_sliding_window": False, "sliding_window": 5},
    "qwen2 older rope keys": {
        **_QWEN2, "rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "qwen2 yarn": {**_QWEN2, "rope_parameters": {**_YARN, "rope_theta": 10000.0}},
    "qwen2 yarn with more keys": {
        **_QWEN2,
        "rope_parameters": {
            **_YARN, "rope_theta": 10000.0, "beta_fast": 16, "beta_slow": 2, "mscale": 1.3,
            "mscale_all_dim": 0.7, "truncate": False,
        },
    },
    "qwen2 llama3": {**_QWEN2, "rope_parameters": {**_LLAMA3, "rope_theta": 10000.0}},
    "qwen3": _QWEN3,
    "qwen3 biases": {**_QWEN3, "attention_bias": True, "num_key_value_heads": 4},
    "qwen3 layer types": {
        **_QWEN3,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "mistral": {**_MISTRAL, "num_key_value_heads": 1, "sliding_window": None},
    "mistral windows": {**_MISTRAL, "sliding_window": 6},
    "gemma3": {**_GEMMA, "use_bidirectional_attention": True},
    "gemma3 causal": {
        **_GEMMA, "layer_types": None, "sliding_window_pattern": 2, "attention_bias": True,
    },
    "gemma3 older rope keys": {
        **_GEMMA, "use_bidirectional_attention": True, "rope_theta": 500000.0,
        "rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3 rope parameters": {
        **_GEMMA,
        "use_bidirectional_attention": True,
        "rope_parameters": {
            "full_attention": {**_YARN, "rope_theta": 20000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
        },
    },
}  # fmt: skip


def make_config(name: str) -> dict[str, Any]:
    """Return the `config.json` of a variant."""
    return {key: value for key, value in VARIANTS[name].items() if value is not None}


def make_tensors(name: str) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a variant by name."""
    config = make_config(name)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    rows = {
        "q": HEADS * HEAD_SIZE,
        "k": config["num_key_value_heads"] * HEAD_SIZE,
        "v": config["num_key_value_heads"] * HEAD_SIZE,
    }
    kind = config["model_type"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCABULARY, SIZE)}
    shapes["norm.weight"] = (SIZE,)
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        for one, count in rows.items():
            shapes[f"{prefix}self_attn.{one}_proj.weight"] = (count, SIZE)
            if kind == "qwen2" or config.get("attention_bias"):
                shapes[f"{prefix}self_attn.{one}_proj.bias"] = (count,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (SIZE, HEADS * HEAD_SIZE)
        if config.get("attention_bias"):
            shapes[f"{prefix}self_attn.o_proj.bias"] = (SIZE,)
        if kind in {"qwen3", "gemma3_text"}:
            shapes[f"{prefix}self_attn.q_norm.weight"] = (HEAD_SIZE,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (HEAD_SIZE,)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (INNER, SIZE)
        shapes[f"{prefix}mlp.up_proj.weight"] = (INNER, SIZE)
        shapes[f"{prefix}mlp.down_proj.weight"] = (SIZE, INNER)
        shapes |= {f"{prefix}{norm}.weight": (SIZE,) for norm in norms}
    return {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def make_batch() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and their mask, int64 [3, 48] each, padded on the right."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (3, 48))
    mask = np.ones_like(ids)
    for row, length in enumerate((48, 17, 1)):
        mask[row, length:] = 0
    return np.where(mask, ids, 0), mask
