"""The forms in which vectors may be stored and compared, derived from float32 vectors.

The server would send the same numbers for `dimensions` and `encoding`; to derive them embeds each
document once for all forms.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.similarity import similarity

Floats = NDArray[np.float32]

_BYTE_BITS: Final = 8
_SCALE_BYTES: Final = 4

BYTES_OF_FORMS: Final[Mapping[str, Callable[[int], int]]] = {
    "float32": lambda dimensions: 4 * dimensions,
    "float16": lambda dimensions: 2 * dimensions,
    "int8": lambda dimensions: dimensions + _SCALE_BYTES,
    "ubinary": lambda dimensions: -(-dimensions // _BYTE_BITS),
    "ubinary+query": lambda dimensions: -(-dimensions // _BYTE_BITS),
    "ubinary+int8": lambda dimensions: -(-dimensions // _BYTE_BITS) + dimensions + _SCALE_BYTES,
}


def shorten(rows: Floats, dimensions: int, *, normalize: bool) -> Floats:
    """Keep the first numbers of each row, [rows, width], and scale the rest to unit length."""
    kept = rows[:, :dimensions]
    if not normalize or dimensions == rows.shape[1]:
        return kept
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    units: Floats = kept / np.maximum(lengths, np.float32(1e-12))
    return units


class BlockScores:
    """The scores of a block of documents for all queries. Each is computed when first used.

    Args:
        queries: [queries, dimensions].
        documents: [documents, dimensions].
        function: The model's similarity.

    Attributes:
        float32: [queries, documents], as are all the others; higher is better.
        float16: Documents in half precision.
        int8: Documents as int8 with a scale each.
        ubinary: The signs of both: dimensions - 2 * Hamming distance.
        ubinary_query: The signs of documents against the numbers of queries.
    """

    def __init__(self, queries: Floats, documents: Floats, function: str) -> None:
        self._queries = queries
        self._documents = documents
        self._function = function

    def of(self, form: str) -> tuple[Floats, Floats | None]:
        """Return the scores by which documents are found, and those by which they are rescored."""
        match form:
            case "float32":
                return self.float32, None
            case "float16":
                return self.float16, None
            case "int8":
                return self.int8, None
            case "ubinary":
                return self.ubinary, None
            case "ubinary+query":
                return self.ubinary, self.ubinary_query
        return self.ubinary, self.int8

    @cached_property
    def float32(self) -> Floats:  # noqa: D102 -- see the class
        return similarity(self._queries, self._documents, self._function)

    @cached_property
    def float16(self) -> Floats:  # noqa: D102 -- see the class
        limit = np.finfo(np.float16).max
        halves = np.clip(self._documents, -limit, limit).astype(np.float16)
        return similarity(self._queries, halves, self._function)

    @cached_property
    def int8(self) -> Floats:  # noqa: D102 -- see the class
        scales = np.abs(self._documents).max(axis=1, keepdims=True) / np.float32(127)
        divisors = np.where(scales > 0, scales, np.float32(1))
        numbers = np.clip(np.rint(self._documents / divisors), -127, 127)
        return similarity(self._queries, numbers * scales, self._function)

    @cached_property
    def ubinary(self) -> Floats:  # noqa: D102 -- see the class
        products: Floats = _signs(self._queries) @ self._document_signs.T
        return products

    @cached_property
    def ubinary_query(self) -> Floats:  # noqa: D102 -- see the class
        products: Floats = self._queries @ self._document_signs.T
        return products

    @cached_property
    def _document_signs(self) -> Floats:
        return _signs(self._documents)


def _signs(rows: Floats) -> Floats:
    """Return 1 where a number is above 0, and -1 elsewhere."""
    return np.where(rows > 0, np.float32(1), np.float32(-1))
