"""The batches of data engines: dicts, Arrow tables, DataFrames of pandas and Polars.

A batch of any of these types gets columns and keeps its type. A library is imported only for its
own batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.suggestions import quote, suggest

_NAMES_SHOWN_MAX: Final = 20


class NewColumns:
    """The columns that a batch gets.

    Args:
        vectors: [rows, width]; rows that failed are 0.
        scales: float32 [rows] for int8, else None.
        errors: The reason of each row that failed, None for the others.
        is_bits: Whether the vectors hold sign bits.
    """

    def __init__(
        self,
        vectors: NDArray[Any],
        scales: NDArray[np.float32] | None,
        errors: Sequence[str | None],
        *,
        is_bits: bool,
    ) -> None:
        self._vectors = vectors
        self._scales = scales
        self._errors = errors
        self._is_bits = is_bits
        self._failed = np.array([error is not None for error in errors], np.bool_)

    def as_arrow(self, *, fixed_size: bool = True) -> tuple[Any, Any, Any]:
        """Return vectors, scales or None, and errors as arrays of Arrow.

        Args:
            fixed_size: Whether the lists state their size. Spark has no such type.
        """
        import pyarrow as pa  # noqa: PLC0415 -- the caller's batch is of pyarrow, or can become so

        width = self._vectors.shape[1]
        if self._is_bits:
            kind = pa.binary(width) if fixed_size else pa.binary()
            rows = [None if row is None else row.tobytes() for row in self.as_rows()]
            vectors = pa.array(rows, kind)
        else:
            flat = pa.array(self._vectors.reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(self._failed))
            if not fixed_size:
                vectors = vectors.cast(pa.list_(flat.type))
        scales = None if self._scales is None else pa.array(self._scales, mask=self._failed)
        return vectors, scales, pa.array(self._errors, pa.string())

    def as_rows(self) -> list[Any]:
        """Return an array for each row, None for those that failed."""
        return [
            None if failed else row for row, failed in zip(self._vectors, self._failed, strict=True)
        ]

    def as_scale_rows(self) -> list[float | None] | None:
        """Return the scale of each row, None for those that failed; None if there are none."""
        if self._scales is None:
            return None
        pairs = zip(self._scales.tolist(), self._failed, strict=True)
        return [None if failed else scale for scale, failed in pairs]

    def as_arrays(self) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]]:
        """Return vectors, scales or None, and errors as arrays of numpy.

        The vectors of rows that failed are NaN, or 0 where they are no floats.
        """
        vectors = self._vectors
        if vectors.dtype.kind == "f" and self._failed.any():
            vectors = vectors.copy()
            vectors[self._failed] = np.nan
        errors = np.empty(len(self._errors), object)
        errors[:] = self._errors
        return vectors, self._scales, errors


def column_names(batch: Any) -> list[str]:
    """Return the names of the columns of a batch.

    Raises:
        TypeError: It is of no known type.
    """
    if isinstance(batch, Mapping):
        return list(batch)
    library, name = _type_name(batch)
    if library == "pyarrow" and name in ("Table", "RecordBatch"):
        return list(batch.schema.names)
    if library in ("pandas", "polars") and name == "DataFrame":
        return [str(one) for one in batch.columns]
    raise TypeError(
        "a batch is a dict of columns, an Arrow table or record batch, or a DataFrame of pandas or"
        f" Polars, not {library}.{name}"
    )


def has_width(batch: Any) -> bool:
    """Return whether the width of vectors shows in a batch without rows."""
    if isinstance(batch, Mapping):
        return any(isinstance(value, np.ndarray) for value in batch.values())
    return _type_name(batch)[0] != "pandas"


def read_texts(batch: Any, column: str) -> list[Any]:
    """Return the values of the column with the texts.

    Raises:
        TypeError: The batch is of no known type, or the column is one str.
        ValueError: It has no such column.
    """
    names = column_names(batch)
    if column not in names:
        shown = ", ".join(map(quote, names[:_NAMES_SHOWN_MAX]))
        raise ValueError(
            f"the batch has no column {quote(column)}{suggest(column, names)}"
            f" (its columns: {shown})"
        )
    values = batch[column]
    if isinstance(values, str):
        raise TypeError(f"the column {quote(column)} is one str; give a list of texts")
    library, _ = _type_name(values)
    if library == "pyarrow":
        return list(values.to_pylist())
    if library == "polars":
        return list(values.to_list())
    if library == "pandas":
        return list(values.astype(object).where(values.notna(), None))
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def add_columns(batch: Any, names: tuple[str, str, str], columns: NewColumns) -> Any:
    """Return a batch with columns added.

    Args:
        batch: The batch; it stays as it is.
        names: The names of the vectors, the scales and the errors.
        columns: The columns.
    """
    library, _ = _type_name(batch)
    if library == "pandas":
        import pandas as pd  # noqa: PLC0415 -- the batch is of pandas

        values = columns.as_rows(), columns.as_scale_rows(), list(columns.as_arrays()[2])
        made = {
            name: pd.Series(value, index=batch.index, dtype=object if name != names[1] else None)
            for name, value in zip(names, values, strict=True)
            if value is not None
        }
        return batch.assign(**made)
    if library == "polars":
        import polars as pl  # noqa: PLC0415 -- the batch is of polars

        made = _named(names, columns.as_arrow())
        return batch.with_columns(pl.from_arrow(one).alias(name) for name, one in made.items())
    if library == "pyarrow":
        for name, one in _named(names, columns.as_arrow()).items():
            batch = batch.append_column(name, one)
        return batch
    is_numpy = any(isinstance(value, np.ndarray) for value in batch.values())
    rows = columns.as_rows(), columns.as_scale_rows(), columns.as_arrays()[2].tolist()
    return {**batch, **_named(names, columns.as_arrays() if is_numpy else rows)}


def _named(names: tuple[str, str, str], values: tuple[Any, Any, Any]) -> dict[str, Any]:
    return {name: one for name, one in zip(names, values, strict=True) if one is not None}


def _type_name(value: Any) -> tuple[str, str]:
    kind = type(value)
    return kind.__module__.partition(".")[0], kind.__name__
