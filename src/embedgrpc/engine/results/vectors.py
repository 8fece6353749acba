"""Turns the model's rows into vectors as callers request them."""

from dataclasses import dataclass
from enum import StrEnum

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray

# The largest finite number: all bits of the exponent but the last, and of the fraction.
_BFLOAT16_MAX = np.uint32(0x7F7F_0000).view(np.float32)


class Encoding(StrEnum):
    """The number format of vectors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    UBINARY = "ubinary"


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Vectors as they are sent.

    Attributes:
        encoding: The number format.
        dimensions: Numbers per vector.
        data: Any dtype, little-endian, C-contiguous [texts, columns]; a row is a vector.
        scales: float32 [texts]; the factors that restore INT8 numbers. None otherwise.
    """

    encoding: Encoding
    dimensions: int
    data: NDArray[np.generic]
    scales: FloatArray | None


def shorten(rows: FloatArray, *, dimensions: int, normalize: bool) -> FloatArray:
    """Keep the first numbers of each row, and scale the rest to unit length again.

    Args:
        rows: float32 [texts, width].
        dimensions: Numbers to keep, at most `width`.
        normalize: Whether to scale. A row of zeros stays as it is.

    Returns:
        float32 [texts, dimensions].

    Source: sentence-transformers, `truncate_embeddings` followed by `normalize`.
    """
    kept = rows[:, :dimensions]
    if not normalize:
        return np.ascontiguousarray(kept)
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    unit: FloatArray = kept / np.maximum(norms, np.float32(1e-12))
    return unit


def encode(rows: FloatArray, encoding: Encoding) -> EncodedRows:
    """Encode vectors in a number format of the contract.

    Args:
        rows: float32 [texts, dimensions], finite.
        encoding: FLOAT16 and BFLOAT16 clip to their largest number; INT8 is symmetric with a
            scale per vector, `max(abs(x)) / 127`; UBINARY packs `x > 0`, most significant bit
            first.
    """
    dimensions = rows.shape[1]
    scales = None
    data: NDArray[np.generic]
    match encoding:
        case Encoding.FLOAT32:
            data = np.ascontiguousarray(rows, dtype="<f4")
        case Encoding.FLOAT16:
            limit = np.finfo(np.float16).max
            data = np.clip(rows, -limit, limit).astype("<f2")
        case Encoding.BFLOAT16:
            data = (
                np.clip(rows, -_BFLOAT16_MAX, _BFLOAT16_MAX).astype(ml_dtypes.bfloat16).view("<u2")
            )
        case Encoding.INT8:
            scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
            divisors = np.where(scales > 0, scales, np.float32(1))
            # A subnormal scale may be too small by a third.
            data = np.clip(np.rint(rows / divisors[:, None]), -127, 127).astype(np.int8)
        case Encoding.UBINARY:
            data = np.packbits(rows > 0, axis=1)
    return EncodedRows(encoding, dimensions, data, scales)
