"""Turns the logits of a classifier or cross-encoder into scores."""

import numpy as np

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import Activation


def scores_of(logits: FloatArray, function: Activation) -> FloatArray:
    """Apply a function to logits.

    In float32 whatever the model's type: in half precision, good scores tie at 1.

    Args:
        logits: float32 [..., labels].
        function: The function; the softmax is that over the last axis.

    Returns:
        float32 [..., labels].
    """
    match function:
        case Activation.SIGMOID:
            # Each form is exact where the other overflows.
            small = np.exp(-np.abs(logits))
            return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
        case Activation.SOFTMAX:
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
        case Activation.IDENTITY:
            return logits
