"""Builds the masked-language heads of encoders from their weights: a logit per vocabulary entry.

Architectures `...ForMaskedLM`; names of the tensors as in Hugging Face transformers.
"""

from dataclasses import dataclass

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.tensors.weights import Tensors


@dataclass(frozen=True, slots=True)
class MlmHead:
    """What the parts of a family's head are called.

    Attributes:
        words: The table of token vectors, which mostly serves as the last matrix too.
        dense: The layer before the last, up to `weight` and `bias`.
        norm: The normalisation after it, likewise.
        decoder: The last matrix, where it is one of its own.
        biases: Of the last layer, by either name.
        activation_key: Of `config.json`, for what follows the dense layer; empty where it always
            is gelu.
        epsilon_key: Of `config.json`, for the normalisation; empty where it is the default.
    """

    words: str
    dense: str
    norm: str
    decoder: str
    biases: tuple[str, ...]
    activation_key: str = ""
    epsilon_key: str = "layer_norm_eps"


_EPSILON = 1e-12
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
_MPNET = MlmHead(
    words="mpnet.embeddings.word_embeddings.weight",
    dense="lm_head.dense.",
    norm="lm_head.layer_norm.",
    decoder="lm_head.decoder.weight",
    biases=("lm_head.bias", "lm_head.decoder.bias"),
)
_ELECTRA = MlmHead(
    words="electra.embeddings.word_embeddings.weight",
    dense="generator_predictions.dense.",
    norm="generator_predictions.LayerNorm.",
    decoder="generator_lm_head.weight",
    biases=("generator_lm_head.bias",),
)
# By `model_type` of config.json.
MLM_HEADS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "electra": _ELECTRA,
}


def build_mlm_head(
    writer: GraphWriter, tensors: Tensors, config: JsonObject, hidden: str, *, vocabulary_size: int
) -> str:
    """Adds the head that gives every token a logit for every vocabulary entry.

    Args:
        writer: Of the graph.
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
    hidden_size = config.size(FAMILIES[model_type].keys.hidden_size)
    # Shorter than the token vectors where the family's tables are.
    size = tensors.describe(head.words)[0][-1]
    decoder = head.decoder if head.decoder in tensors.names else head.words
    if decoder == head.words and not config.flag("tie_word_embeddings", default=True):
        raise ModelError(f"{tensors.path} does not fit config.json: {head.decoder} is missing")
    bias = next((name for name in head.biases if name in tensors.names), head.biases[0])
    scale, shift = _norm_names(tensors, head)
    tensors.check(
        {
            f"{head.dense}weight": (size, hidden_size),
            f"{head.dense}bias": (size,),
            scale: (size,),
            shift: (size,),
            decoder: (vocabulary_size, size),
            bias: (vocabulary_size,),
        }
    )
    inner = _linear(writer, tensors, f"{head.dense}weight", f"{head.dense}bias", hidden)
    inner = ACTIVATIONS[_activation(config, head)](writer, inner)
    inner = writer.layer_norm(
        inner,
        writer.weight(tensors.read(scale), scale),
        writer.weight(tensors.read(shift), shift),
        epsilon=_epsilon(config, head),
    )
    return _linear(writer, tensors, decoder, bias, inner)


def _norm_names(tensors: Tensors, head: MlmHead) -> tuple[str, str]:
    # Checkpoints that were converted from TensorFlow keep its names.
    old = f"{head.norm}gamma" in tensors.names
    return (
        (f"{head.norm}gamma", f"{head.norm}beta")
        if old
        else (f"{head.norm}weight", f"{head.norm}bias")
    )


def _activation(config: JsonObject, head: MlmHead) -> str:
    if not head.activation_key:
        return "gelu"
    name = config.text(head.activation_key, default="gelu")
    if name not in ACTIVATIONS:
        raise config.wrong(head.activation_key, "one of " + ", ".join(ACTIVATIONS))
    return name


def _epsilon(config: JsonObject, head: MlmHead) -> float:
    epsilon = config.values.get(head.epsilon_key, _EPSILON)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise config.wrong(head.epsilon_key, "a small number")
    return epsilon


def _linear(writer: GraphWriter, tensors: Tensors, weight: str, bias: str, source: str) -> str:
    product = writer.op("MatMul", source, writer.weight(tensors.read(weight).T, weight))
    return writer.op("Add", product, writer.weight(tensors.read(bias), bias))
