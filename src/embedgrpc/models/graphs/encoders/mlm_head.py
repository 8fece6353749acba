"""Builds the masked-language head of an encoder from its weights: a logit per vocabulary entry.

Architectures `...ForMaskedLM`; names of the tensors as in Hugging Face transformers.
"""

from dataclasses import dataclass, replace

import numpy as np

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS
from embedgrpc.models.graphs.encoders.config import read_activation, read_epsilon
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.tensors.weights import Tensors


@dataclass(frozen=True, slots=True)
class MlmHead:
    """The names of the tensors of a family's head.

    Attributes:
        words: The table of token vectors, which most models also use as the last matrix.
        dense: Prefix of weight and bias of the layer before the last.
        norm: Prefix of weight and bias of the normalisation after it.
        decoder: The last matrix, if it is separate.
        biases: The two possible names of the last layer's bias.
        activation_key: The key of `config.json` for the activation function; empty for gelu.
        epsilon_key: The key of `config.json` for the epsilon; empty for the default.
        epsilon: The epsilon if `config.json` has none.
        bias_keys: The keys of `config.json` that say whether the layer before the last, the
            normalisation and the last layer have a bias, with their defaults; empty if all have.
    """

    words: str
    dense: str
    norm: str
    decoder: str
    biases: tuple[str, ...]
    activation_key: str = ""
    epsilon_key: str = "layer_norm_eps"
    epsilon: float = 1e-12
    bias_keys: tuple[tuple[str, bool], ...] = ()


_BERT = MlmHead(
    words="bert.embeddings.word_embeddings.weight",
    dense="cls.predictions.transform.dense.",
    norm="cls.predictions.transform.LayerNorm.",
    decoder="cls.predictions.decoder.weight",
    biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    activation_key="hidden_act",
)
_ROBERTA = MlmHead(
    words="roberta.embeddings.word_embeddings.weight",
    dense="lm_head.dense.",
    norm="lm_head.layer_norm.",
    decoder="lm_head.decoder.weight",
    biases=("lm_head.bias", "lm_head.decoder.bias"),
)
_DISTILBERT = MlmHead(
    words="distilbert.embeddings.word_embeddings.weight",
    dense="vocab_transform.",
    norm="vocab_layer_norm.",
    decoder="vocab_projector.weight",
    biases=("vocab_projector.bias",),
    activation_key="activation",
    epsilon_key="",
)
_ELECTRA = MlmHead(
    words="electra.embeddings.word_embeddings.weight",
    dense="generator_predictions.dense.",
    norm="generator_predictions.LayerNorm.",
    decoder="generator_lm_head.weight",
    biases=("generator_lm_head.bias",),
)
_GTE = MlmHead(
    words="gte.embeddings.word_embeddings.weight",
    dense="lm_head.dense.",
    norm="lm_head.norm.",
    decoder="lm_head.decoder.weight",
    biases=("lm_head.decoder.bias",),
)
_MODERNBERT = MlmHead(
    words="model.embeddings.tok_embeddings.weight",
    dense="head.dense.",
    norm="head.norm.",
    decoder="decoder.weight",
    biases=("decoder.bias",),
    activation_key="classifier_activation",
    epsilon_key="norm_eps",
    epsilon=1e-5,
    bias_keys=(("classifier_bias", False), ("norm_bias", False), ("decoder_bias", True)),
)
# By `model_type` of config.json.
MLM_HEADS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "mpnet": replace(_ROBERTA, words="mpnet.embeddings.word_embeddings.weight"),
    "electra": _ELECTRA,
    "modernbert": _MODERNBERT,
    "gte": _GTE,
    "new": replace(
        _GTE, words="new.embeddings.word_embeddings.weight", activation_key="hidden_act"
    ),
}


def build_mlm_head(
    writer: GraphWriter, tensors: Tensors, config: JsonObject, hidden: str, *, vocabulary_size: int
) -> str:
    """Append the head that computes a logit for every token and every vocabulary entry.

    Args:
        writer: The graph's writer.
        tensors: The weights.
        config: `config.json`.
        hidden: float32 [batch, tokens, hidden_size].
        vocabulary_size: Entries of the vocabulary.

    Returns:
        The name of the logits, float32 [batch, tokens, vocabulary_size].

    Raises:
        ModelError: The family's head is not known, or the weights do not fit.
    """
    model_type = config.text("model_type", default="")
    head = MLM_HEADS.get(model_type)
    if head is None:
        known = ", ".join(MLM_HEADS)
        raise config.wrong("model_type", f"one of {known} for sparse vectors without onnx/")
    if head.words not in tensors.names:
        raise ModelError(f"{tensors.path} does not fit config.json: {head.words} is missing")
    family = FAMILIES.get(model_type)
    hidden_size = config.size(family.keys.hidden_size if family else "hidden_size")
    # Shorter than hidden_size in families that project the tables' rows.
    size = tensors.describe(head.words)[0][-1]
    decoder = head.decoder if head.decoder in tensors.names else head.words
    if decoder == head.words and not config.flag("tie_word_embeddings", default=True):
        raise ModelError(f"{tensors.path} does not fit config.json: {head.decoder} is missing")
    bias = next((name for name in head.biases if name in tensors.names), head.biases[0])
    scale, shift = _norm_names(tensors, head)
    dense, dense_bias = f"{head.dense}weight", f"{head.dense}bias"
    has_biases = [config.flag(name, default=default) for name, default in head.bias_keys]
    dense_bias, shift, bias = (
        name if has_bias else ""
        for name, has_bias in zip(
            (dense_bias, shift, bias), has_biases or (True, True, True), strict=True
        )
    )
    shapes = {dense: (size, hidden_size), scale: (size,), decoder: (vocabulary_size, size)}
    lengths = {dense_bias: size, shift: size, bias: vocabulary_size}
    shapes |= {name: (length,) for name, length in lengths.items() if name}
    tensors.check(shapes)
    inner = _linear(writer, tensors, dense, dense_bias, hidden)
    key = head.activation_key
    activation = read_activation(config, key, default="gelu") if key else "gelu"
    inner = writer.layer_norm(
        ACTIVATIONS[activation](writer, inner),
        writer.weight(tensors.read(scale), scale),
        writer.weight(tensors.read(shift) if shift else np.zeros(size, np.float32), "shift"),
        epsilon=read_epsilon(config, head.epsilon_key, default=head.epsilon),
    )
    return _linear(writer, tensors, decoder, bias, inner)


def _norm_names(tensors: Tensors, head: MlmHead) -> tuple[str, str]:
    # Checkpoints converted from TensorFlow keep its names.
    old = f"{head.norm}gamma" in tensors.names
    scale, shift = ("gamma", "beta") if old else ("weight", "bias")
    return f"{head.norm}{scale}", f"{head.norm}{shift}"


def _linear(writer: GraphWriter, tensors: Tensors, weight: str, bias: str, source: str) -> str:
    product = writer.op("MatMul", source, writer.weight(tensors.read(weight).T, weight))
    return writer.op("Add", product, writer.weight(tensors.read(bias), bias)) if bias else product
