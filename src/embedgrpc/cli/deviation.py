"""Measures how much the results of two ways to run a model differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray


@dataclass(frozen=True, slots=True)
class Deviation:
    """How much two sets of results differ.

    Attributes:
        number_max: The largest difference between two numbers; infinite if shapes differ.
        number_mean: The mean difference.
        cosine_max: The largest 1 - cosine of two vectors; None for single numbers.
        cosine_mean: The mean of 1 - cosine; None for single numbers.
        worst: The index of the item with the largest difference.
    """

    number_max: float
    number_mean: float
    cosine_max: float | None
    cosine_mean: float | None
    worst: int

    def __str__(self) -> str:
        if np.isinf(self.number_max):
            return f"text {self.worst + 1} has another shape"
        text = f"numbers max {self.number_max:.1e} mean {self.number_mean:.1e}"
        if self.cosine_max is None or self.cosine_mean is None:
            return text
        return f"{text}, 1 - cosine max {self.cosine_max:.1e} mean {self.cosine_mean:.1e}"


def compare(ours: Sequence[FloatArray], theirs: Sequence[FloatArray]) -> Deviation:
    """Compare results item by item.

    Args:
        ours: For each item float32 [values] or [vectors, values].
        theirs: The same for the other way to run the model.
    """
    pairs = list(zip(ours, theirs, strict=True))
    for index, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            return Deviation(np.inf, np.inf, np.inf, np.inf, index)
    # Use float64, so that rounding in the comparison does not show up in the result.
    gaps = [np.abs(one.astype(np.float64) - other).ravel() for one, other in pairs]
    largest = [float(gap.max(initial=0.0)) for gap in gaps]
    cosines = np.concatenate([_cosine_gaps(one, other) for one, other in pairs])
    return Deviation(
        number_max=max(largest),
        number_mean=float(np.concatenate(gaps).mean()),
        cosine_max=float(cosines.max()) if cosines.size else None,
        cosine_mean=float(cosines.mean()) if cosines.size else None,
        worst=int(np.argmax(largest)),
    )


def is_finite(rows: Sequence[FloatArray]) -> bool:
    """Return whether every number is finite."""
    return all(bool(np.isfinite(row).all()) for row in rows)


def length_gap(rows: Sequence[FloatArray]) -> float:
    """Return the largest difference between the length of a vector and 1."""
    lengths = np.concatenate([np.linalg.norm(np.atleast_2d(row), axis=1) for row in rows])
    return float(np.abs(lengths - 1.0).max())


def _cosine_gaps(one: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """Return 1 - cosine of each pair, float64 [vectors]; empty for single numbers."""
    ours, theirs = np.atleast_2d(one).astype(np.float64), np.atleast_2d(other).astype(np.float64)
    if ours.shape[1] == 1:
        return np.empty(0)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    # Two zero vectors are equal; a zero vector has no angle to another one.
    equal = np.where(np.abs(ours - theirs).max(axis=1, initial=0.0) == 0, 1.0, 0.0)
    cosines = np.divide(products, lengths, out=equal, where=lengths > 0)
    # Rounding can make it negative.
    return np.asarray(np.maximum(1.0 - cosines, 0.0), np.float64)
