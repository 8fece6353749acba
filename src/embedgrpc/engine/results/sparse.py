"""Sparse vectors, which weight some entries of the vocabulary."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class SparseVector:
    """The non-zero weights of a vector.

    Attributes:
        indices: uint32 [terms]; vocabulary ids, ascending, each once.
        values: float32 [terms]; their weights.
    """

    indices: NDArray[np.uint32]
    values: FloatArray

    def dot(self, other: "SparseVector") -> float:
        """Return the dot product."""
        _, mine, theirs = np.intersect1d(
            self.indices, other.indices, assume_unique=True, return_indices=True
        )
        return float(self.values[mine] @ other.values[theirs])

    def heaviest(self, terms: int) -> "SparseVector":
        """Return only the terms of the largest absolute weights; of equal ones, the lower ids."""
        if terms >= len(self.values):
            return self
        kept = np.sort(np.argsort(-np.abs(self.values), kind="stable")[:terms])
        return SparseVector(self.indices[kept], self.values[kept])


def from_token_weights(
    weights: FloatArray, input_ids: IntArray, unweighted: AbstractSet[int]
) -> SparseVector:
    """Give each vocabulary entry the largest weight of its tokens.

    Args:
        weights: float32 [tokens]; never below 0.
        input_ids: int64 [tokens].
        unweighted: Entries to leave out.

    Source: FlagEmbedding, BGE-M3's lexical weights.
    """
    order = np.argsort(input_ids, kind="stable")
    ids, starts = np.unique(input_ids[order], return_index=True)
    largest = np.maximum.reduceat(weights[order], starts)
    kept = (largest > 0) & ~np.isin(ids, list(unweighted))
    return SparseVector(ids[kept].astype(np.uint32), largest[kept])


def from_looked_up_weights(weights: FloatArray, input_ids: IntArray) -> SparseVector:
    """Give each token that occurs its weight once, and leave out weights of 0.

    Args:
        weights: float32 [tokens]; equal for equal tokens.
        input_ids: int64 [tokens].

    Source: sentence-transformers' `SparseStaticEmbedding`.
    """
    ids, places = np.unique(input_ids, return_index=True)
    once = weights[places]
    kept = once != 0
    return SparseVector(ids[kept].astype(np.uint32), once[kept])


def from_vocabulary_weights(weights: FloatArray) -> SparseVector:
    """Keep the entries that are not zero, from weights float32 [vocabulary].

    Source: SPLADE, as in sentence-transformers' `SpladePooling`.
    """
    indices = np.flatnonzero(weights)
    return SparseVector(indices.astype(np.uint32), weights[indices])
