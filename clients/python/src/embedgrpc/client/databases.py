"""Sparse vectors and multi-vectors as vector databases take them, in plain Python values.

Dense vectors need no conversion but `tolist()`. None of the databases is imported.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.vectors import MultiVector, SparseVector


def to_qdrant(vector: SparseVector | MultiVector) -> dict[str, Any] | list[list[float]]:
    """Return a vector as Qdrant takes it.

    Returns:
        For a sparse vector {"indices": [...], "values": [...]}: the arguments of
        `models.SparseVector`, and the form over HTTP. For a multi-vector a list of rows.

    Raises:
        TypeError: It is another kind of vector.
        ValueError: It is a multi-vector of sign bits.
    """
    if isinstance(vector, SparseVector):
        return {"indices": vector.indices.tolist(), "values": vector.values.tolist()}
    rows: list[list[float]] = _numbers(vector).tolist()
    return rows


def to_pgvector(vector: SparseVector | MultiVector) -> str | list[str]:
    """Return a vector as text of pgvector.

    Returns:
        For a sparse vector the text of a `sparsevec`, whose indices count from 1, such as
        "{1:0.5,7:1.25}/30522". For a multi-vector the texts of its rows, such as "[0.5,1.25]", for
        a column of type `vector[]`.

    Raises:
        TypeError: It is another kind of vector.
        ValueError: It is a multi-vector of sign bits.
    """
    if isinstance(vector, SparseVector):
        pairs = zip((vector.indices + 1).tolist(), _texts(vector.values), strict=True)
        return f"{{{','.join(f'{index}:{value}' for index, value in pairs)}}}/{vector.dimensions}"
    return [f"[{','.join(_texts(row))}]" for row in _numbers(vector)]


def to_milvus(
    vector: SparseVector | MultiVector, *, field: str = "vector"
) -> dict[int, float] | list[dict[str, list[float]]]:
    """Return a vector as Milvus takes it.

    Args:
        vector: The vector.
        field: The name of the vector field of the struct, for a multi-vector.

    Returns:
        For a sparse vector {index: value}. For a multi-vector the value of an array of structs: a
        dict with the field for each row.

    Raises:
        TypeError: It is another kind of vector.
        ValueError: It is a multi-vector of sign bits.
    """
    if isinstance(vector, SparseVector):
        return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
    return [{field: row} for row in _numbers(vector).tolist()]


def _numbers(vector: MultiVector) -> NDArray[np.float32]:
    """Return the rows of a multi-vector: float32 [rows, dimensions]."""
    if not isinstance(vector, MultiVector):
        raise TypeError(
            f"vector is neither a SparseVector nor a MultiVector but of type"
            f" {type(vector).__name__}"
        )
    if vector.values.dtype == np.uint8:
        raise ValueError("ubinary rows hold signs, not numbers; use another encoding")
    numbers = vector.values.astype(np.float32, copy=False)
    return numbers if vector.scales is None else numbers * vector.scales[:, None]


def _texts(values: NDArray[np.float32]) -> list[str]:
    """Return each number as the shortest text that reads back as the same float32."""
    texts: list[str] = values.astype(np.str_).tolist()
    return texts
