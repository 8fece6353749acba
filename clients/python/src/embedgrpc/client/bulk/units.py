"""The units of work: parts of inputs that are read, embedded, written and resumed as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Span:
    """A part of one file.

    Attributes:
        group: The row group of a Parquet file or the batch of an Arrow file; 0 elsewhere.
        start: The first row within the group; the first byte of a file of lines.
        end: The row or byte after the last.
        rows: The number of rows.
    """

    group: int
    start: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of one input with its place in the output.

    Attributes:
        number: The number of the part of the output, from 0.
        input_index: The input.
        first_row: The number of its first row among the rows of all inputs.
        span: The part of the input.
    """

    number: int
    input_index: int
    first_row: int
    span: Span

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.span.rows


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a unit.

    Attributes:
        texts: One for each row; None where the row has none.
        columns: The id and the columns to keep, by name: a list, or an array of pyarrow.
    """

    texts: Sequence[str | None]
    columns: Mapping[str, Any]


class Source(Protocol):
    """An input file."""

    def types(self) -> Mapping[str, Any]:
        """Return its columns: the kinds of the values of each, or its type of pyarrow."""

    def plan(self, rows_max: int, text_column: str) -> Sequence[Span]:
        """Divide the file into spans of at most `rows_max` rows, and check the text column.

        Raises:
            UsageError: The file has no such column, or what it holds is no text.
        """

    def read(self, span: Span, text_column: str, columns: Sequence[str]) -> Rows:
        """Read the rows of a span."""
