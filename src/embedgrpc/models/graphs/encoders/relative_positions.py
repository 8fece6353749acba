"""Sorts distances between tokens into buckets, as T5 and MPNet do."""

import numpy as np
from numpy.typing import NDArray

BUCKETS = 32
_DISTANCE_MAX = 128


def distance_buckets(distances: NDArray[np.int64]) -> NDArray[np.int64]:
    """Finds the bucket of each distance.

    Half of the buckets are for tokens that come later. In each half the first half is for one
    distance each, and the rest for ranges that grow with the logarithm, up to a distance beyond
    which all share the last.

    Args:
        distances: int64 [...]; how many tokens later the other token is.

    Returns:
        int64 [...], from 0 to `BUCKETS` - 1.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning", 2019, and MPNet's
    `relative_position_bucket` in transformers, in float32 as there.
    """
    half = BUCKETS // 2
    exact = half // 2
    away = np.abs(distances)
    # Float32 throughout: the edges of the ranges are where rounding decides.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(_DISTANCE_MAX / exact)) * np.float32(half - exact)
    # Cut towards 0; where it is below 0, the other branch is taken.
    ranged = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(away < exact, away, ranged)
