"""Draws the settings of tiny models: all that their files say, from a seed."""

import json
import random
from collections.abc import Sequence
from typing import Any

Settings = dict[str, Any]

_WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
# For each fixture whose tokenizer is used: the classes that may take it, and the architectures.
_BASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bert-mean": (_WORD_PIECE, ("bert", "distilbert", "electra", "mpnet")),
    "roberta-mean": (("RobertaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"), ("roberta",)),
    "xlmr-metaspace": (("XLMRobertaTokenizer", "CamembertTokenizer"), ("xlm-roberta", "camembert")),
    "xlmr-bge-m3": (("XLMRobertaTokenizer", "CamembertTokenizer"), ("xlm-roberta", "camembert")),
    "albert": (("AlbertTokenizer",), ("albert", "bert")),
    "t5": (("T5Tokenizer",), ("bert", "xlm-roberta")),
    "gemma-dense": (("GemmaTokenizer", "LlamaTokenizer"), ("bert", "roberta")),
    "qwen3-last": (("Qwen2Tokenizer", "GPT2Tokenizer"), ("bert", "qwen3")),
    "modernbert-cls": (("PreTrainedTokenizerFast",), ("bert", "distilbert")),
}
_NAMES = ("[Q]", "[D]", "<MARK>", "newword", "<|im_end|>", "<extra>", "[NEW] ", "the")
_FLAGS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents",
    "split_special_tokens", "legacy", "trim_offsets", "add_bos_token", "add_eos_token",
)  # fmt: skip
_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new", "gelu_pytorch_tanh")
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
    kind = source.choice(("embedding",) * 6 + ("cross",) * 3 + ("sparse",))
    base = source.choice(list(_BASES))
    classes, types = _BASES[base]
    if kind == "sparse":
        base, types = "bert-mean", ("bert", "distilbert")
        classes = _BASES[base][0][:3]
    settings = {
        "seed": seed,
        "kind": kind,
        "base": base,
        "model_type": source.choice(types),
        "config": _draw_config(source),
        "tokenizer.json": _draw_tokenizer(source),
        "tokenizer_config.json": _draw_tokenizer_config(source, classes),
        "special_tokens_map.json": _draw_map(source),
        "added_tokens.json": _draw_added(source),
        "keeps_tokenizer_config": source.random() < 0.7,
        # The reference does not run a model without a padding token.
        "names_padding": source.random() < 0.9,
        "transformer": _draw_transformer(source),
    }
    return settings | _KINDS[kind](source)


def _maybe(source: random.Random, share: float, value: Any) -> Any:
    return value if source.random() < share else None


def _draw_config(source: random.Random) -> Settings:
    return {
        "hidden_act": source.choice(_ACTIVATIONS),
        "layer_norm_eps": source.choice((1e-12, 1e-5)),
        "type_vocab_size": source.choice((1, 2, 2)),
        "num_hidden_layers": source.choice((1, 2)),
        "max_position_embeddings": source.choice((130, 700, 700, 700, 700)),
    }


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


def _draw_embedding(source: random.Random) -> Settings:
    layers: list[Settings] = []
    while source.random() < 0.35 and len(layers) < 3:
        kind = source.choice(("Dense", "Dense", "LayerNorm", "Dropout"))
        layers.append({"kind": kind})
        if kind == "Dense":
            layers[-1] |= {
                "out_features": source.choice((12, 32, 40)),
                "bias": source.random() < 0.7,
                "activation": source.choice(_LAYER_ACTIVATIONS),
                "use_residual": source.random() < 0.3,
            }
    prompts = {"query": "query: ", "document": "passage: [Q] ", "bare": ""}
    chosen = _maybe(source, 0.5, dict(source.sample(list(prompts.items()), 2))) or {}
    return {
        "poolings": source.sample(_POOLINGS, source.choice((1, 1, 1, 2))),
        "layers": layers,
        "normalize": source.random() < 0.6,
        "prompts": chosen,
        "default_prompt_name": _maybe(source, 0.5, next(iter(chosen), None)),
        "similarity": source.choice((None, "cosine", "dot", "euclidean", "manhattan")),
        "truncate_dim": _maybe(source, 0.2, source.choice((4, 10, 500))),
        # The schema of releases before 5.4.
        "old_schema": source.random() < 0.4,
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


_KINDS = {"embedding": _draw_embedding, "cross": _draw_cross, "sparse": _draw_sparse}


def dump(settings: Settings) -> str:
    """Return settings as one line of JSON."""
    return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))
