"""Rounds matrices to int8."""

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray

_LEVELS = 127


def round_columns(values: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Round a matrix to int8 with a scale per column.

    Args:
        values: float32 [rows, columns].

    Returns:
        int8 [rows, columns], and the scales, float32 [columns]; a column of zeros has scale 1.
    """
    largest = np.abs(values).max(axis=0)
    scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
    integers = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return integers, scale
