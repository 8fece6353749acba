"""The best documents of each query, found block by block."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_RANK_BITS: Final = 32
_RANK_MASK: Final = 2**_RANK_BITS - 1


class IdOrder:
    """The order of documents with equal scores: by id, the larger first.

    Args:
        ids: The ids of the documents, by number.

    Source: trec_eval, which sorts so; hence the order of the file changes no figure.
    """

    def __init__(self, ids: list[str]) -> None:
        # Code points sort as the bytes of UTF-8 do.
        self._numbers = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        self._ranks = np.empty_like(self._numbers)
        self._ranks[self._numbers] = np.arange(len(ids))

    def keys(self, scores: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return keys that sort as the scores do, and by id where those are equal.

        Args:
            scores: [queries, documents], no NaN.
            numbers: [documents], or [queries, documents].
        """
        bits = (scores + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
        ordered = np.where(bits < 0, bits ^ np.int32(2**31 - 1), bits).astype(np.int64)
        keys: NDArray[np.int64] = (ordered << _RANK_BITS) | self._ranks[numbers]
        return keys

    def numbers(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the documents of keys."""
        numbers: NDArray[np.int64] = self._numbers[keys & _RANK_MASK]
        return numbers


class BestDocuments:
    """The best documents of each query so far. No two documents have the same place.

    Args:
        query_count: The number of queries.
        count: The number of documents to keep of each.
        order: The order of documents with equal scores.
    """

    def __init__(self, query_count: int, count: int, order: IdOrder) -> None:
        self._count = count
        self._order = order
        self._keys = np.empty((query_count, 0), np.int64)
        self._rescored = np.empty((query_count, 0), np.float32)

    def add(
        self,
        numbers: NDArray[np.int64],
        scores: NDArray[np.float32],
        rescored: NDArray[np.float32] | None = None,
    ) -> None:
        """Add a block of documents.

        Args:
            numbers: [documents].
            scores: [queries, documents]; by these, documents are kept.
            rescored: [queries, documents]; by these, those that are kept are ranked in the end.
                None for the scores.
        """
        keys = np.concatenate([self._keys, self._order.keys(scores, numbers)], axis=1)
        finals = (
            self._rescored if rescored is None else np.concatenate([self._rescored, rescored], 1)
        )
        if keys.shape[1] > self._count:
            best = np.argpartition(keys, -self._count, axis=1)[:, -self._count :]
            keys = np.take_along_axis(keys, best, axis=1)
            finals = finals if rescored is None else np.take_along_axis(finals, best, axis=1)
        self._keys, self._rescored = keys, finals

    def ranked(self) -> NDArray[np.int64]:
        """Return the numbers of the documents that were kept, best first: [queries, documents]."""
        keys = self._keys
        if self._rescored.shape[1]:
            keys = self._order.keys(self._rescored, self._order.numbers(keys))
        return self._order.numbers(-np.sort(-keys, axis=1))
