"""Biases that keep attention from padding, from later tokens, and from distant ones."""

import numpy as np
from onnx import TensorProto

from embedgrpc.models.graphs.writer import GraphWriter

# So low that the weight of a score becomes 0. A row of nothing else stays finite.
LOWEST = float(np.finfo(np.float32).min)


def append_attention_bias(
    writer: GraphWriter, positions: str, *, causal: bool, window: int = 0
) -> str:
    """Append the bias of a layer, which is added to scores.

    Args:
        writer: The writer of a graph with the input `attention_mask`.
        positions: int64 [tokens]: 0, 1, 2 and so on.
        causal: Whether a token sees only those before it, and itself.
        window: A token sees others that are nearer than this; 0 for all.

    Returns:
        The name of the bias, float32 [batch, 1, 1 or tokens, tokens].
    """
    seen = writer.reshape(writer.op("Cast", "attention_mask", to=TensorProto.BOOL), [0, 1, 1, -1])
    if causal or window:
        # int64 [tokens, tokens]: how far the seen token lies before the one that sees it.
        behind = writer.op(
            "Sub", writer.reshape(positions, [-1, 1]), writer.reshape(positions, [1, -1])
        )
        if causal:
            zero = writer.constant(np.array(0, np.int64), "zero")
            seen = writer.op("And", seen, writer.op("GreaterOrEqual", behind, zero))
        if window:
            distance = behind if causal else writer.op("Abs", behind)
            limit = writer.constant(np.array(window, np.int64), "window")
            seen = writer.op("And", seen, writer.op("Less", distance, limit))
    return writer.op("Where", seen, writer.scalar(0.0), writer.scalar(LOWEST))


def append_sight(writer: GraphWriter, bias: str) -> str:
    """Append which tokens see any token: float32 [batch, tokens, 1], 1 or 0.

    Where a token sees none, as one far behind all that are seen, its scores are all the lowest.
    Their softmax would be the mean of the whole batch's length, so its attention must be set to 0,
    as PyTorch's scaled_dot_product_attention has it.

    Args:
        writer: The graph's writer.
        bias: float32 [batch, 1, tokens, tokens], from `append_attention_bias` with a window.
    """
    highest = writer.op("ReduceMax", bias, axes=[1, 3], keepdims=0)
    sees = writer.op("Cast", writer.op("Equal", highest, writer.scalar(0.0)), to=TensorProto.FLOAT)
    return writer.reshape(sees, [0, -1, 1])
