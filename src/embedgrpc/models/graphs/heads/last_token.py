"""Scores a sequence by its last token, as decoders with a classifier do."""

import numpy as np
from onnx import TensorProto

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.heads.pooling import append_last_tokens
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.weights import Tensors

_SCORE = "score.weight"


def append_last_token_logits(
    writer: GraphWriter, tensors: Tensors, config: JsonObject, hidden: str, *, label_count: int
) -> str:
    """Append the head of a decoder that classifies.

    Args:
        writer: The writer of a graph with the inputs `input_ids` and `attention_mask`.
        tensors: The weights.
        config: `config.json`.
        hidden: float32 [batch, tokens, hidden_size].
        label_count: The number of labels.

    Returns:
        The name of the logits, float32 [batch, labels].

    Raises:
        ModelError: The weights do not fit `config.json`.

    Source: transformers' `GenericForSequenceClassification`.
    """
    size = config.size("hidden_size")
    tensors.check({_SCORE: (label_count, size)})
    mask = "attention_mask"
    padding_id = config.count("pad_token_id")
    if padding_id is not None:
        # As in the reference, a padding token that the text spells out is not the last one.
        padding = writer.constant(np.array(padding_id, np.int64), "padding")
        other = writer.op("Not", writer.op("Equal", "input_ids", padding))
        mask = writer.op("Mul", mask, writer.op("Cast", other, to=TensorProto.INT64))
    last = append_last_tokens(writer, hidden, mask, hidden_size=size)
    weight = writer.weight(tensors.read(_SCORE).T, _SCORE)
    return writer.op("MatMul", last, weight, name=f"{EXACT_PREFIX}score")
