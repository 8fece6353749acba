"""Draws the architecture of a tiny model and the settings of its `config.json`."""

import random
from typing import Any, NamedTuple

Settings = dict[str, Any]

_ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new", "gelu_pytorch_tanh")
_ROTARY = ("modernbert", "nomic_bert", "gte")
_DECODERS = ("qwen2", "qwen3", "mistral", "gemma", "gemma3_text")
# Architectures with a masked-language head, and with one that scores sequences.
_SPARSE = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "gte"})
_CAUSAL = frozenset(_DECODERS)


class Base(NamedTuple):
    """What may go with the tokenizer of a fixture.

    Attributes:
        classes: Tokenizer classes.
        types: Architectures.
    """

    classes: tuple[str, ...]
    types: tuple[str, ...]

    def model_types(self, kind: str) -> tuple[str, ...]:
        """Return the architectures of a kind of models."""
        if kind == "sparse":
            return tuple(one for one in self.types if one in _SPARSE)
        if kind == "causal":
            return tuple(one for one in self.types if one in _CAUSAL)
        return self.types


# By the fixture whose tokenizer is used.
BASES = {
    "bert-mean": Base(
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"),
        ("bert", "distilbert", "electra", "mpnet", "nomic_bert", "gte"),
    ),
    "roberta-mean": Base(
        ("RobertaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"), ("roberta", "modernbert")
    ),
    "xlmr-metaspace": Base(
        ("XLMRobertaTokenizer", "CamembertTokenizer"), ("xlm-roberta", "camembert", "gte")
    ),
    "xlmr-bge-m3": Base(
        ("XLMRobertaTokenizer", "CamembertTokenizer"), ("xlm-roberta", "camembert")
    ),
    "albert": Base(("AlbertTokenizer",), ("albert", "bert")),
    "t5": Base(("T5Tokenizer",), ("bert", "xlm-roberta")),
    "gemma-dense": Base(
        ("GemmaTokenizer", "LlamaTokenizer"), ("bert", "roberta", "gemma", "gemma3_text", "mistral")
    ),
    "qwen3-last": Base(("Qwen2Tokenizer", "GPT2Tokenizer"), ("bert", "qwen2", "qwen3", "mistral")),
    "modernbert-cls": Base(("PreTrainedTokenizerFast",), ("bert", "distilbert", *_ROTARY)),
}
# Kinds that are not made with every tokenizer.
BASES_OF_KINDS = {
    "sparse": ["bert-mean", "modernbert-cls", "roberta-mean"],
    "late": ["bert-mean", "modernbert-cls", "roberta-mean", "xlmr-metaspace", "gemma-dense"],
    "causal": ["qwen3-last", "gemma-dense"],
}


def draw_config(source: random.Random, model_type: str) -> Settings:
    """Return keys of `config.json`."""
    config = {
        "hidden_act": source.choice(_ACTIVATIONS),
        "layer_norm_eps": source.choice((1e-12, 1e-5)),
        "type_vocab_size": source.choice((1, 2, 2)),
        "num_hidden_layers": source.choice((1, 2)),
        "max_position_embeddings": source.choice((130, 700, 700, 700, 700)),
    }
    if model_type in _DECODERS:
        return config | _draw_decoder(source, model_type)
    if model_type == "modernbert":
        return config | _draw_modern_bert(source)
    if model_type in _ROTARY:
        config["rope_parameters"] = _draw_rotation(source)
        if model_type == "gte":
            config["type_vocab_size"] = source.choice((0, 1))
        return config
    return config


def _draw_rotation(source: random.Random) -> Settings:
    return {"rope_type": "default", "rope_theta": source.choice((100.0, 1000.0, 160_000.0))}


def _draw_modern_bert(source: random.Random) -> Settings:
    flags = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias", "decoder_bias")
    return {
        **{flag: source.random() < 0.4 for flag in flags},
        "hidden_activation": source.choice(_ACTIVATIONS),
        "norm_eps": source.choice((1e-12, 1e-5)),
        "num_hidden_layers": source.choice((2, 4)),
        "local_attention": source.choice((4, 16, 128)),
        "global_attn_every_n_layers": source.choice((1, 2, 3)),
        "classifier_pooling": source.choice(("cls", "mean")),
        "classifier_activation": source.choice(_ACTIVATIONS),
        "rope_parameters": {
            "full_attention": _draw_rotation(source),
            "sliding_attention": _draw_rotation(source),
        },
    }


def _draw_decoder(source: random.Random, model_type: str) -> Settings:
    gemma = model_type.startswith("gemma")
    config: Settings = {
        "num_key_value_heads": source.choice((1, 2, 4)),
        "rms_norm_eps": source.choice((1e-6, 1e-5)),
        "tie_word_embeddings": source.random() < 0.7,
        "hidden_act": "gelu_pytorch_tanh" if gemma else "silu",
    }
    if model_type != "qwen2":
        config["head_dim"] = source.choice((8, 12))
    if model_type in ("qwen3", "gemma"):
        config["attention_bias"] = source.random() < 0.4
    if model_type == "mistral":
        config["sliding_window"] = source.choice((None, 5, 64))
    if model_type == "gemma3_text":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": source.choice((6, 64)),
            "num_hidden_layers": source.choice((2, 3)),
            "query_pre_attn_scalar": source.choice((8, 20)),
            "use_bidirectional_attention": source.random() < 0.6,
            "rope_parameters": {
                "full_attention": _draw_rotation(source),
                "sliding_attention": _draw_rotation(source),
            },
        }
        count = config["num_hidden_layers"]
        kinds = ("sliding_attention", "full_attention")
        config["layer_types"] = [source.choice(kinds) for _ in range(count)]
    else:
        config["rope_parameters"] = _draw_rotation(source)
    return config
