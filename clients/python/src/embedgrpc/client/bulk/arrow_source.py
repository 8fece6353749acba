"""Inputs with types: Parquet, by row group, and Arrow's IPC files, by batch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedgrpc.client.bulk.problems import UsageError, arrow
from embedgrpc.client.bulk.units import Rows, Span

ARROW_FORMATS = ("parquet", "arrow")


class ArrowSource:
    """A Parquet file or an Arrow IPC file.

    Args:
        path: The file.
        form: One of `ARROW_FORMATS`.

    Raises:
        UsageError: The file cannot be read as such, or pyarrow is missing.
    """

    def __init__(self, path: Path, form: str) -> None:
        pa = arrow("pyarrow", f"reading {form}")
        self._path = path
        try:
            self._file: _Groups = (_ParquetGroups if form == "parquet" else _ArrowGroups)(path)
        except pa.ArrowInvalid as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{path} is not a file of {form}: {reason}") from None
        self._batches: Iterator[Any] = iter(())
        self._rest: Any = None  # what is left of the batch read last
        self._place: tuple[int, int, tuple[str, ...]] | None = None  # group, row, columns

    def types(self) -> Mapping[str, Any]:
        """Return the columns and their types of pyarrow."""
        schema = self._file.schema
        return dict(zip(schema.names, schema.types, strict=True))

    def plan(self, rows_max: int, text_column: str) -> Sequence[Span]:
        """Divide the row groups; see `Source`."""
        pa = arrow("pyarrow", "Parquet")
        found = self.types().get(text_column)
        types = (pa.string(), pa.large_string(), pa.string_view())
        if found is not None and pa.types.is_dictionary(found):
            found = found.value_type
        if found is not None and found not in types:
            raise UsageError(f"{self._path}: the column {text_column!r} is no text but {found}")
        if found is not None and self._file.is_all_null(text_column):
            raise UsageError(f"{self._path}: the column {text_column!r} is empty in every row")
        return [
            Span(group, start, min(start + rows_max, rows), min(rows_max, rows - start))
            for group, rows in enumerate(self._file.rows)
            for start in range(0, rows, rows_max)
        ]

    def read(self, span: Span, text_column: str, columns: Sequence[str]) -> Rows:
        """Read the rows of a span; fast where it follows the one read before."""
        pa = arrow("pyarrow", "Parquet")
        wanted = tuple(dict.fromkeys((text_column, *columns)))
        if self._place != (span.group, span.start, wanted):
            self._batches = self._file.batches(span.group, list(wanted), span.rows)
            self._rest = None
            self._take(span.start)
        taken = pa.Table.from_batches(self._take(span.rows))
        self._place = (span.group, span.end, wanted)
        if taken.num_rows != span.rows:
            raise UsageError(f"{self._path} has changed: it has fewer rows than before")
        texts = taken.column(text_column).to_pylist()
        return Rows(texts, {name: taken.column(name) for name in columns})

    def _take(self, rows: int) -> list[Any]:
        """Return the next batches, with so many rows in all; fewer at the end of the group."""
        taken: list[Any] = []
        while rows > 0:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                break
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            taken.append(batch.slice(0, rows))
            rows -= taken[-1].num_rows
        return taken


class _ParquetGroups:
    """The row groups of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self._file = arrow("pyarrow.parquet", "Parquet").ParquetFile(path)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.rows: list[int] = [
            metadata.row_group(one).num_rows for one in range(metadata.num_row_groups)
        ]

    def is_all_null(self, column: str) -> bool:
        """Return whether the statistics tell that a column has no value."""
        metadata = self._file.metadata
        names = [metadata.schema.column(one).path for one in range(metadata.num_columns)]
        if column not in names or not metadata.num_rows:
            return False
        index = names.index(column)
        statistics = [
            metadata.row_group(one).column(index).statistics
            for one in range(metadata.num_row_groups)
        ]
        return all(
            found is not None and found.has_null_count and found.null_count == rows
            for found, rows in zip(statistics, self.rows, strict=True)
        )

    def batches(self, group: int, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield the batches of a row group."""
        batches: Iterator[Any] = self._file.iter_batches(rows, row_groups=[group], columns=columns)
        return batches


class _ArrowGroups:
    """The batches of an Arrow IPC file, which is mapped and not read as a whole."""

    def __init__(self, path: Path) -> None:
        pa = arrow("pyarrow", "Arrow")
        self._file = arrow("pyarrow.ipc", "Arrow").open_file(pa.memory_map(str(path)))
        self.schema = self._file.schema
        self.rows: list[int] = [
            self._file.get_batch(one).num_rows for one in range(self._file.num_record_batches)
        ]

    def is_all_null(self, column: str) -> bool:
        """Return whether a column has no value."""
        index = self.schema.get_field_index(column)
        counts = (
            self._file.get_batch(one).column(index).null_count for one in range(len(self.rows))
        )
        nulls: int = sum(counts)
        return 0 < sum(self.rows) == nulls

    def batches(self, group: int, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield the one batch of a group."""
        del rows  # slices of it cost nothing
        yield self._file.get_batch(group).select(columns)


_Groups = _ParquetGroups | _ArrowGroups
