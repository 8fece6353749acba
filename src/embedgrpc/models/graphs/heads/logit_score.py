"""Appends the score of a causal reranker to a graph with a vector per token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.decoder_families import CAP_KEY
from embedgrpc.models.graphs.heads.pooling import append_last_tokens
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.weights import Tensors

_HEAD = "lm_head.weight"
# The embeddings of a causal model, and of a backbone saved alone.
_TABLES = ("model.embed_tokens.weight", "embed_tokens.weight")


@dataclass(frozen=True, slots=True)
class Step:
    """An operation on each logit, such as the division of a soft cap.

    Attributes:
        kind: The operator: Add, Sub, Mul, Div or Tanh.
        operand: The second operand; None for Tanh. float32, a number or one per token.
    """

    kind: str
    operand: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The part of a vocabulary head that computes the logits of one or two tokens.

    Attributes:
        rows: float32 [tokens, hidden_size]: a weight row for each of these tokens.
        steps: What follows, in order.
    """

    rows: FloatArray
    steps: Sequence[Step] = ()


def read_token_rows(tensors: Tensors, config: JsonObject, token_ids: Sequence[int]) -> TokenRows:
    """Read the head of a causal model for some tokens.

    Args:
        tensors: The weights.
        config: `config.json`.
        token_ids: The tokens, below its `vocab_size`.

    Raises:
        ModelError: The weights do not fit `config.json`.

    Source: the models for causal language modelling of transformers.
    """
    shape = (config.size("vocab_size"), config.size("hidden_size"))
    name = _HEAD
    if name not in tensors.names:
        shares = config.text("model_type", default="").startswith("gemma")
        if not config.flag("tie_word_embeddings", default=shares):
            raise config.wrong("tie_word_embeddings", f"true, as {tensors.path} has no {_HEAD}")
        name = next((one for one in _TABLES if one in tensors.names), _TABLES[0])
    tensors.check({name: shape})
    rows = tensors.read(name)[list(token_ids)]
    cap = config.values.get(CAP_KEY)
    if cap is None:
        return TokenRows(rows)
    if isinstance(cap, bool) or not isinstance(cap, int | float) or cap <= 0:
        raise config.wrong(CAP_KEY, "a number above 0")
    limit = np.array([cap], np.float32)
    return TokenRows(rows, (Step("Div", limit), Step("Tanh"), Step("Mul", limit)))


def append_logit_score(writer: GraphWriter, hidden: str, head: TokenRows) -> str:
    """Score sequences by the logits after their last token.

    Args:
        writer: The graph's writer.
        hidden: [batch, tokens, hidden_size] of any type, as the vocabulary head gets it.
        head: The head of the true token and, if its logit is subtracted, of the false token.

    Returns:
        The name of the score, float32 [batch, 1].
    """
    count, hidden_size = head.rows.shape
    last = append_last_tokens(writer, hidden, "attention_mask", hidden_size=hidden_size)
    # In float32 whatever the graph's type: close logits would be rounded to the same number.
    last = writer.op("Cast", last, to=TensorProto.FLOAT)
    rows = writer.weight(np.ascontiguousarray(head.rows.T), "token_rows")
    logits = writer.op("MatMul", last, rows, name=f"{EXACT_PREFIX}token_logits")
    for step in head.steps:
        if step.operand is None:
            logits = writer.op(step.kind, logits)
        else:
            operand = step.operand.reshape(1, -1)
            logits = writer.op(step.kind, logits, writer.constant(operand, "operand"))
    if count > 1:
        signs = writer.constant(np.array([[1], [-1]], np.float32), "signs")
        logits = writer.op("MatMul", logits, signs, name=f"{EXACT_PREFIX}logit_difference")
    return logits
