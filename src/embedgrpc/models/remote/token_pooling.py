"""Pools token vectors with numpy, for graphs on servers that return token vectors.

Source: sentence-transformers `Pooling` and `Normalize`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.kinds import Pooling


def pool(hidden: FloatArray, mask: IntArray, poolings: Sequence[Pooling]) -> FloatArray:
    """Pool the token vectors of each text into one vector.

    Args:
        hidden: float32 [batch, tokens, hidden_size].
        mask: int64 [batch, tokens]; 1 for a real token, of which each text has at least one.
        poolings: The poolings whose results are concatenated.

    Returns:
        float32 [batch, hidden_size x poolings].

    Raises:
        ValueError: The two shapes do not fit.
    """
    if hidden.ndim != mask.ndim + 1 or hidden.shape[:2] != mask.shape:
        raise ValueError(f"token vectors {list(hidden.shape)} for a mask {list(mask.shape)}")
    parts = [_POOLINGS[one](hidden, mask) for one in poolings]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def scale_to_unit(vectors: FloatArray) -> FloatArray:
    """Scale vectors, float32 [..., dimensions], to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), np.float32)


def _cls(hidden: FloatArray, mask: IntArray) -> FloatArray:
    # The first real token, wherever padding is.
    return _at(hidden, mask.argmax(axis=1))


def _last_token(hidden: FloatArray, mask: IntArray) -> FloatArray:
    return _at(hidden, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1))


def _max(hidden: FloatArray, mask: IntArray) -> FloatArray:
    real = mask[:, :, np.newaxis] == 1
    return np.asarray(np.where(real, hidden, np.float32(-np.inf)).max(axis=1), np.float32)


def _mean(hidden: FloatArray, mask: IntArray) -> FloatArray:
    return _weighted_sum(hidden, mask) / _count(mask)


def _mean_sqrt_len(hidden: FloatArray, mask: IntArray) -> FloatArray:
    return np.asarray(_weighted_sum(hidden, mask) / np.sqrt(_count(mask)), np.float32)


def _weighted_mean(hidden: FloatArray, mask: IntArray) -> FloatArray:
    # Later tokens weigh more; padding on the left does not count.
    weights = mask.cumsum(axis=1) * mask
    return _weighted_sum(hidden, weights) / _count(weights)


def _weighted_sum(hidden: FloatArray, weights: IntArray) -> FloatArray:
    row = weights[:, np.newaxis, :].astype(np.float32)  # [batch, 1, tokens]
    return np.asarray(np.matmul(row, hidden)[:, 0], np.float32)


def _count(weights: IntArray) -> FloatArray:
    """float32 [batch, 1]; never 0."""
    total = weights.sum(axis=1, keepdims=True).astype(np.float32)
    return np.asarray(np.maximum(total, np.float32(1e-9)), np.float32)


def _at(hidden: FloatArray, index: IntArray) -> FloatArray:
    return hidden[np.arange(len(hidden)), index]


_POOLINGS: dict[Pooling, Callable[[FloatArray, IntArray], FloatArray]] = {
    Pooling.CLS: _cls,
    Pooling.MAX: _max,
    Pooling.MEAN: _mean,
    Pooling.MEAN_SQRT_LEN: _mean_sqrt_len,
    Pooling.WEIGHTED_MEAN: _weighted_mean,
    Pooling.LAST_TOKEN: _last_token,
}
