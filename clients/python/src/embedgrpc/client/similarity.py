"""The similarity of vectors, as the models of sentence-transformers have it."""

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedgrpc.client.suggestions import quote, suggest

SIMILARITIES: Final = ("cosine", "dot", "euclidean", "manhattan")
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


def similarity(left: ArrayLike, right: ArrayLike, function: str = "cosine") -> NDArray[np.float32]:
    """Compare every vector of one array with every vector of another.

    Args:
        left: [n, dimensions], or one vector [dimensions]. uint8 arrays hold sign bits, as "ubinary"
            vectors do, and count as -1 and 1.
        right: [m, dimensions], or one vector.
        function: "cosine", "dot", "euclidean" or "manhattan". The last two are distances with a
            minus sign.

    Returns:
        float32 [n, m]; higher is more similar.

    Raises:
        ValueError: The dimensions differ, or there is no such function.
    """
    compare = _FUNCTIONS.get(function)
    if compare is None:
        raise ValueError(f"no similarity {quote(function)}{suggest(function, _FUNCTIONS)}")
    first, second = _rows(left), _rows(right)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the vectors have {first.shape[1]} and {second.shape[1]} dimensions; give vectors of"
            " one model"
        )
    scores: NDArray[np.float32] = compare(first, second)
    return scores


def _rows(vectors: ArrayLike) -> NDArray[np.float32]:
    array = np.atleast_2d(np.asarray(vectors))
    if array.dtype == np.uint8:
        array = np.unpackbits(array, axis=1).astype(np.float32) * 2 - 1
    return array.astype(np.float32, copy=False)


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    return _dot(_unit(left), _unit(right))


def _dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    products: NDArray[np.float32] = left @ right.T
    return products


def _euclidean(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    return _by_rows(left, right, lambda rest: np.linalg.norm(rest, axis=1))


def _manhattan(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    return _by_rows(left, right, lambda rest: np.abs(rest).sum(axis=1))


def _by_rows(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    length: Callable[[NDArray[np.float32]], Any],
) -> NDArray[np.float32]:
    """Return minus the distances; row by row, so that no array [n, m, dimensions] is needed."""
    scores = np.empty((len(left), len(right)), np.float32)
    for index, row in enumerate(left):
        scores[index] = -length(right - row)
    return scores


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units


_FUNCTIONS: Final[dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], Any]]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
