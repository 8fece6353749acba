"""Sorts distances between tokens into buckets, as T5 and MPNet do."""

import numpy as np

from embedgrpc.libraries.arrays import IntArray

BUCKETS = 32
_DISTANCE_MAX = 128


def distance_buckets(distances: IntArray) -> IntArray:
    """Return the bucket of each distance, int64 [...] from 0 to `BUCKETS` - 1.

    The second half of the buckets is for tokens that come later. The first 8 buckets of a half hold
    one distance each; the others hold ranges that grow logarithmically up to 128, and the last
    bucket takes all larger distances.

    Args:
        distances: int64 [...]; positive if the other token comes later.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning", 2019, and MPNet's
    `relative_position_bucket` in transformers, which computes in float32.
    """
    half = BUCKETS // 2
    exact = half // 2
    away = np.abs(distances)
    # In float32 as in the source: rounding decides at the edges of ranges.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(_DISTANCE_MAX / exact)) * np.float32(half - exact)
    # Truncated; negative steps are not used below.
    ranged = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(away < exact, away, ranged)
