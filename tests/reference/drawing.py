"""Draws the settings of tiny models: all that their files say, from a seed."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.reference.drawn_backbones import BASES, BASES_OF_KINDS, draw_config

Settings = dict[str, Any]

_NAMES = ("[Q]", "[D]", "<MARK>", "newword", "<|im_end|>", "<extra>", "[NEW] ", "the")
_FLAGS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents",
    "split_special_tokens", "legacy", "trim_offsets", "add_bos_token", "add_eos_token",
)  # fmt: skip
_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_LAYER_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_SIDES = ("left", "right")
_FIRST = (
    "{%- set q = messages | selectattr('role','eq','query') | map(attribute='content') | first -%}"
    "{%- set d = messages | selectattr('role','eq','document') | map(attribute='content')"
    " | first -%}"
)
_TEMPLATES = (
    _FIRST + "Judge.\nQuery: {{ q }}\nDocument: {{ d }}\nAnswer:",
    _FIRST + "<|im_end|>{{ q }}<|im_end|>{{ d }}<|im_end|>",
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}",
)


def draw(seed: int) -> Settings:
    """Return the settings of one model, as JSON values."""
    source = random.Random(seed)  # noqa: S311 - no secret
    kind = source.choice(_SHARES)
    base = source.choice(BASES_OF_KINDS.get(kind, list(BASES)))
    classes, types = BASES[base].classes, BASES[base].model_types(kind)
    model_type = source.choice(types)
    settings = {
        "seed": seed,
        "kind": kind,
        "base": base,
        "model_type": model_type,
        "config": draw_config(source, model_type),
        "tokenizer.json": _draw_tokenizer(source),
        "tokenizer_config.json": _draw_tokenizer_config(source, classes),
        "special_tokens_map.json": _draw_map(source),
        "added_tokens.json": _draw_added(source),
        "keeps_tokenizer_config": source.random() < 0.7,
        # The reference does not run a model without a padding token.
        "names_padding": source.random() < 0.9,
        "transformer": _draw_transformer(source),
    }
    return settings | KINDS[kind](source)


def _maybe(source: random.Random, share: float, value: Any) -> Any:
    return value if source.random() < share else None


def _draw_token(source: random.Random, content: str) -> Settings:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": content} | {flag: source.random() < 0.35 for flag in flags}


def _draw_tokens(source: random.Random, count: int) -> list[Any]:
    return [
        name if source.random() < 0.6 else {"__type": "AddedToken", **_draw_token(source, name)}
        for name in source.sample(_NAMES, count)
    ]


def _draw_tokenizer(source: random.Random) -> Settings:
    """Return changes of the keys of `tokenizer.json`; `added` is a token more."""
    changes: Settings = {}
    if source.random() < 0.1:
        changes["post_processor"] = None
    if source.random() < 0.2:
        changes["truncation"] = {
            "direction": source.choice(("Left", "Right")),
            "max_length": 20,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    if source.random() < 0.2:
        changes["added"] = _draw_token(source, source.choice(_NAMES))
    return changes


def _draw_tokenizer_config(source: random.Random, classes: Sequence[str]) -> Settings:
    config: Settings = {}
    name = source.choice((*classes, "PreTrainedTokenizerFast", ""))
    if name:
        config["tokenizer_class"] = name
        if source.random() < 0.3 and not name.endswith("Fast"):
            config["tokenizer_class"] += "Fast"
    config |= _draw_flags(source)
    if source.random() < 0.25:
        places = source.sample(range(900, 2000), 3)
        names = source.sample(_NAMES, source.randint(1, 3))
        config["added_tokens_decoder"] = {
            str(place): _draw_token(source, content)
            for place, content in zip(places, names, strict=False)
        }
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if source.random() < 0.2:
            config[key] = _draw_tokens(source, 2)
    if source.random() < 0.1:
        config["extra_special_tokens"] = {"image_token": "[D]", "q_token": "<MARK>"}
    if source.random() < 0.1:
        mask = source.choice(("<mask>", "[MASK]"))
        config["mask_token"] = {"__type": "AddedToken", **_draw_token(source, mask)}
    return config


def _draw_flags(source: random.Random) -> Settings:
    config: Settings = {}
    for flag in _FLAGS:
        if source.random() < 0.15:
            config[flag] = source.random() < 0.5
    if source.random() < 0.3:
        config["truncation_side"] = source.choice(_SIDES)
    if source.random() < 0.3:
        config["padding_side"] = source.choice(_SIDES)
    if source.random() < 0.4:
        config["model_max_length"] = source.choice((12, 30, 64, 512, 10**30))
    return config


def _draw_map(source: random.Random) -> Settings | None:
    if source.random() < 0.7:
        return None
    changes: Settings = {}
    if source.random() < 0.4:
        token = _draw_token(source, source.choice(("<mask>", "[MASK]")))
        changes["mask_token"] = {key: value for key, value in token.items() if key != "special"}
    if source.random() < 0.4:
        changes["additional_special_tokens"] = ["[Q]"]
    if source.random() < 0.3:
        changes["extra_special_tokens"] = ["[D]"]
    return changes


def _draw_added(source: random.Random) -> Settings | None:
    if source.random() < 0.75:
        return None
    names, places = source.sample(_NAMES, 2), source.sample(range(900, 2000), 2)
    return dict(zip(names, places, strict=True))


def _draw_transformer(source: random.Random) -> Settings:
    """Return changes of the Transformer's file."""
    changes: Settings = {}
    if source.random() < 0.6:
        changes["max_seq_length"] = source.choice((10, 24, 40, 200))
    if source.random() < 0.2:
        changes["do_lower_case"] = True
    if source.random() < 0.15:
        arguments = source.choice(
            ({"model_max_length": 16}, {"truncation_side": "left"}, {"padding_side": "left"})
        )
        changes[source.choice(("tokenizer_args", "processor_kwargs"))] = arguments
    return changes


def _draw_layers(source: random.Random, kinds: Sequence[str], most: int) -> list[Settings]:
    layers: list[Settings] = []
    while source.random() < 0.35 and len(layers) < most:
        kind = source.choice(kinds)
        layers.append({"kind": kind})
        if kind == "Dense":
            layers[-1] |= {
                "out_features": source.choice((12, 32, 40)),
                "bias": source.random() < 0.7,
                "activation": source.choice(_LAYER_ACTIVATIONS),
                "use_residual": source.random() < 0.3,
            }
    return layers


def _draw_prompts(source: random.Random) -> Settings:
    prompts = {"query": "query: ", "document": "passage: [Q] ", "bare": ""}
    chosen = _maybe(source, 0.5, dict(source.sample(list(prompts.items()), 2))) or {}
    return {
        "prompts": chosen,
        "default_prompt_name": _maybe(source, 0.5, next(iter(chosen), None)),
    }


def _draw_embedding(source: random.Random) -> Settings:
    return {
        "poolings": source.sample(_POOLINGS, source.choice((1, 1, 1, 2))),
        "layers": _draw_layers(source, ("Dense", "Dense", "LayerNorm", "Dropout"), 3),
        "normalize": source.random() < 0.6,
        **_draw_prompts(source),
        "similarity": source.choice((None, "cosine", "dot", "euclidean", "manhattan")),
        "truncate_dim": _maybe(source, 0.2, source.choice((4, 10, 500))),
        # The schema of releases before 5.4.
        "old_schema": source.random() < 0.4,
    }


def _draw_static(source: random.Random) -> Settings:
    return {
        "dtype": source.choice(("float32", "float32", "float16")),
        "layers": _draw_layers(source, ("Dense", "LayerNorm", "Dropout"), 2),
        "normalize": source.random() < 0.6,
        **_draw_prompts(source),
        "similarity": source.choice((None, "cosine", "dot")),
        "truncate_dim": _maybe(source, 0.2, source.choice((4, 10, 500))),
    }


def _draw_model2vec(source: random.Random) -> Settings:
    return {
        "normalize": source.random() < 0.6,
        "max_length": source.choice((None, 4, 12, 32, 512)),
        # Rows that tokens share, and a factor for each token.
        "rows": _maybe(source, 0.4, 200),
        "has_factors": source.random() < 0.4,
        "dtype": source.choice(("float32", "float32", "float16", "int8")),
    }


def _draw_late(source: random.Random) -> Settings:
    length = source.choice((8, 16, 32))
    expansion = {
        "strategy": source.choice(("fixed", "min")),
        "attend": source.random() < 0.5,
        "length": length,
        "token": _maybe(source, 0.2, "."),
    }
    return {
        "query_length": source.choice((length, 32)),
        "document_length": source.choice((24, 60, 180)),
        "query_expansion": _maybe(source, 0.7, expansion),
        "markers": source.sample(("[Q] ", "[D] ", "[Q]", "<MARK>"), 2),
        "adds_markers": source.random() < 0.7,
        "layers": [layer for layer in _draw_layers(source, ("Dense",), 2) if source.random() < 0.9],
        "skip_words": source.choice(([], [".", ","], ["the", "a", ".", "[Q]"])),
        "skip_roles": source.choice((["document"], ["query", "document"])),
        "normalize": source.random() < 0.7,
        "similarity": source.choice((None, "maxsim", "meanmaxsim")),
    }


def _draw_causal(source: random.Random) -> Settings:
    return {
        "chat_template": source.choice(_TEMPLATES),
        "adds_generation_prompt": source.random() < 0.3,
        "tokens": source.sample(range(20, 300), source.choice((1, 2, 2))),
        "activation": source.choice((None, "Identity", "Sigmoid")),
    }


def _draw_cross(source: random.Random) -> Settings:
    return {
        "chat_template": _maybe(source, 0.25, source.choice(_TEMPLATES)),
        "activation": source.choice((None, "Identity", "Sigmoid")),
        "saved_again": source.random() < 0.5,
    }


def _draw_sparse(source: random.Random) -> Settings:
    return {
        "strategy": source.choice(("max", "sum")),
        "activation": source.choice(("relu", "log1p_relu")),
        "max_active_dims": _maybe(source, 0.3, 20),
    }


KINDS: dict[str, Callable[[random.Random], Settings]] = {
    "embedding": _draw_embedding,
    "cross": _draw_cross,
    "sparse": _draw_sparse,
    "static": _draw_static,
    "model2vec": _draw_model2vec,
    "late": _draw_late,
    "causal": _draw_causal,
}
_SHARES = (
    *("embedding",) * 7, *("cross",) * 4, *("late",) * 3, *("sparse",) * 2,
    "static", "model2vec", "causal",
)  # fmt: skip


def dump(settings: Settings) -> str:
    """Return settings as one line of JSON."""
    return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))
