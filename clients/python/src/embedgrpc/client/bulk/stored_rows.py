"""The embeddings that a written part has, so that only its rows that failed are embedded again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.bulk.part import ERROR, VectorForm
from embedgrpc.client.result_types import StreamResult
from embedgrpc.client.vectors import MultiVector, SparseVector

Stored = Iterator[tuple[int, StreamResult]]


def stored_fields(rows: Sequence[Mapping[str, Any]], form: VectorForm) -> Stored:
    """Yield the place and the embedding of each row that has one.

    Args:
        rows: The fields of each row, by the names of the columns.
        form: The form of the embeddings.
    """
    for place, fields in enumerate(rows):
        if fields[ERROR] is None:
            vector = fields.get("embedding")
            yield place, _result(fields, form, None if vector is None else _array(vector, form))


def stored_table(table: Any, form: VectorForm) -> Stored:
    """Yield the place and the embedding of each row of a table that has one."""
    names = [name for name in form.columns if name != "embedding"]
    rows = table.select(names).to_pylist()
    vectors: Iterator[NDArray[Any] | None] = iter(())
    if "dense" in form.representations:
        chunks = table["embedding"].chunks
        # Both leave out the rows that failed, which are null.
        if form.encoding == "ubinary":
            found = [
                np.frombuffer(one, np.uint8) for one in table["embedding"].drop_null().to_pylist()
            ]
            vectors = iter(found)
        else:
            numbers = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
            vectors = iter(numbers.reshape(-1, form.dimensions))
    for place, fields in enumerate(rows):
        if fields[ERROR] is None:
            yield place, _result(fields, form, next(vectors, None))


def _result(
    fields: Mapping[str, Any], form: VectorForm, vector: NDArray[Any] | None
) -> StreamResult:
    sparse = multi_vector = None
    if fields.get("sparse_indices") is not None:
        indices = np.array(fields["sparse_indices"], np.int64)
        sparse = SparseVector(indices, np.array(fields["sparse_values"], np.float32), 0)
    if fields.get("multi_vector") is not None:
        values = np.array([_array(one, form) for one in fields["multi_vector"]])
        scales = fields.get("multi_vector_scales")
        multi_vector = MultiVector(
            values, None if scales is None else np.array(scales, np.float32), values.shape[-1]
        )
    scale = fields.get("scale")
    return StreamResult(
        id=None,
        vector=vector,
        scale=1.0 if scale is None else scale,
        sparse=sparse,
        multi_vector=multi_vector,
    )


def _array(numbers: Any, form: VectorForm) -> NDArray[Any]:
    if isinstance(numbers, bytes):
        return np.frombuffer(numbers, np.uint8)
    return np.array(numbers, form.dtype)
