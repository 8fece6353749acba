"""Parts as tables of Arrow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from embedgrpc.client.bulk.column_kinds import in_kind
from embedgrpc.client.bulk.part import ERROR, Part
from embedgrpc.client.bulk.problems import arrow


def to_table(part: Part, types: Mapping[str, Any], metadata: Mapping[str, str]) -> Any:
    """Return a part as a table.

    Args:
        part: The part.
        types: The types of the columns besides the embeddings: kinds, or types of pyarrow.
        metadata: What the schema tells about the part.
    """
    pa = arrow("pyarrow", "this output")
    failed = np.array([error is not None for error in part.errors])  # [rows] bool
    arrays: dict[str, Any] = {}
    for name, values in part.columns.items():
        kind = types[name]
        if isinstance(values, list):
            arrays[name] = pa.array(in_kind(values, kind), _arrow_type(kind))
        else:
            arrays[name] = values
    for name in part.form.columns:
        if name == ERROR:
            arrays[name] = pa.array(part.errors, pa.string())
        else:
            arrays[name] = _embeddings(part, name, failed)
    return pa.table(arrays).replace_schema_metadata(dict(metadata))


def open_parquet(file: BinaryIO, schema: Any) -> Any:
    """Open a writer of Parquet.

    Without dictionaries: of vectors they are as large as the vectors, and three times as slow.
    """
    parquet = arrow("pyarrow.parquet", "Parquet")
    return parquet.ParquetWriter(file, schema, use_dictionary=False)


def open_arrow(file: BinaryIO, schema: Any) -> Any:
    """Open a writer of Arrow's IPC files."""
    return arrow("pyarrow.ipc", "Arrow").new_file(file, schema)


def read_parquet(path: Path) -> Any:
    """Read the table of a file of Parquet."""
    return arrow("pyarrow.parquet", "Parquet").ParquetFile(path).read()


def read_arrow(path: Path) -> Any:
    """Read the table of an IPC file of Arrow, mapped into memory."""
    file = arrow("pyarrow", "Arrow").memory_map(str(path))
    return arrow("pyarrow.ipc", "Arrow").open_file(file).read_all()


def _arrow_type(kind: Any) -> Any:
    pa = arrow("pyarrow", "this output")
    names: Final = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}
    return names.get(kind, pa.string()) if isinstance(kind, str) else kind


def _embeddings(part: Part, name: str, failed: Any) -> Any:
    """Return one column of the embeddings: null in rows that failed."""
    pa = arrow("pyarrow", "this output")
    if name == "embedding":
        return _rows_of_vectors(part.vectors, failed, is_bits=part.form.encoding == "ubinary")
    if name == "scale":
        return pa.array(part.scales, mask=failed)
    if name.startswith("sparse"):
        attribute = name.removeprefix("sparse_")
        parts = [getattr(one, attribute) if one is not None else None for one in part.sparse]
        kind = pa.int64() if attribute == "indices" else pa.float32()
        return pa.array(parts, pa.list_(kind))
    values = [one.values if one is not None else None for one in part.multi_vectors]
    if name == "multi_vector_scales":
        scales = [one.scales if one is not None else None for one in part.multi_vectors]
        return pa.array(scales, pa.list_(pa.float32()))
    return _lists_of_vectors(part, values)


def _lists_of_vectors(part: Part, values: list[Any]) -> Any:
    """Return a list of vectors for each row.

    The inner lists state no size: a part whose rows all failed would know none.
    """
    pa = arrow("pyarrow", "this output")
    number = pa.from_numpy_dtype(part.form.dtype)
    if part.form.encoding == "ubinary":
        bits = [None if one is None else [row.tobytes() for row in one] for one in values]
        return pa.array(bits, pa.list_(pa.binary()))
    found = [one.astype(part.form.dtype) for one in values if one is not None]
    rows = [row for one in found for row in one]
    flat = pa.array(np.concatenate(rows) if rows else np.zeros(0, part.form.dtype), number)
    vectors = pa.ListArray.from_arrays(_offsets([len(row) for row in rows]), flat)
    counts = [0 if one is None else len(one) for one in values]
    mask = pa.array([one is None for one in values])
    return pa.ListArray.from_arrays(_offsets(counts), vectors, mask=mask)


def _offsets(lengths: list[int]) -> Any:
    """Return where lists of these lengths start, and where the last ends."""
    pa = arrow("pyarrow", "this output")
    return pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def _rows_of_vectors(vectors: Any, failed: Any, *, is_bits: bool) -> Any:
    """Return [rows, width] as lists of fixed size, or as bytes of fixed size for bits."""
    pa = arrow("pyarrow", "this output")
    width = vectors.shape[1]
    if is_bits:
        rows = [None if failed[row] else vectors[row].tobytes() for row in range(len(vectors))]
        return pa.array(rows, pa.binary(width))
    flat = pa.array(vectors.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(failed))
