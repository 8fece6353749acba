"""Inputs of lines: JSON Lines, CSV, plain text, and the batch files of OpenAI's API.

A file is read once before the run: that checks each line, finds the types of the columns and the
bytes where units end. A unit ends at a line break.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from embedgrpc.client.bulk.batch_requests import (
    BATCH_FORMAT,
    BatchRequestError,
    request_options,
    request_rows,
)
from embedgrpc.client.bulk.column_kinds import kind_of
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.units import Rows, Span

_LINE_BYTES_MAX: Final = 16 * 2**20
_UNIT_BYTES_MAX: Final = 64 * 2**20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
LINE_FORMATS: Final = ("jsonl", "csv", "lines", BATCH_FORMAT)

Record = dict[str, Any]


class Lines:
    """The lines of a part of a file, decoded one by one.

    Attributes:
        offset: The byte after the last line that was read.
        number: The number of that line, from 1 where the part starts.
    """

    def __init__(self, file: BinaryIO, path: Path, end: float = float("inf")) -> None:
        self.offset = file.tell()
        self.number = 0
        self._file = file
        self._path = path
        self._end = end

    def __iter__(self) -> Iterator[str]:
        while self.offset < self._end and (line := self._file.readline(_LINE_BYTES_MAX + 1)):
            self.number += 1
            if len(line) > _LINE_BYTES_MAX:
                raise self.error(f"has more than {_LINE_BYTES_MAX} bytes")
            is_first = self.offset == 0
            self.offset += len(line)
            try:
                yield (line.removeprefix(_BYTE_ORDER_MARK) if is_first else line).decode()
            except UnicodeDecodeError as error:
                # Without its cause, which holds the line.
                raise self.error(f"is not UTF-8 at byte {error.start}") from None

    def error(self, what: str) -> UsageError:
        """Return an error about the line that was read last."""
        return UsageError(f"{self._path}: line {self.number} {what}")


class LineSource:
    """A file of lines.

    Args:
        path: The file.
        form: One of `LINE_FORMATS`.

    Attributes:
        requested: The models and dimensions that the lines of a batch file ask for; known after
            `plan`.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.requested: set[tuple[str, int]] = set()
        self._path = path
        self._form = form
        self._header: list[str] | None = None
        self._kinds: dict[str, set[str]] = {}

    def types(self) -> Mapping[str, Any]:
        """Return the kinds of the values of each column; known after `plan`."""
        return self._kinds

    def plan(self, rows_max: int, text_column: str) -> Sequence[Span]:
        """Check each line and divide the file; see `Source`."""
        spans: list[Span] = []
        with self._path.open("rb") as file:
            lines = Lines(file, self._path)
            self._read_header(lines)
            start, rows, has_text = lines.offset, 0, False
            for records in self._records(lines):
                for record in records:
                    has_text |= self._check(record, text_column, lines)
                rows += len(records)
                if rows >= rows_max or lines.offset - start >= _UNIT_BYTES_MAX:
                    spans.append(Span(0, start, lines.offset, rows))
                    start, rows = lines.offset, 0
            if rows:
                spans.append(Span(0, start, lines.offset, rows))
        if spans and not has_text and text_column in self._kinds:
            raise UsageError(f"{self._path}: the column {text_column!r} is empty in every row")
        return spans

    def read(self, span: Span, text_column: str, columns: Sequence[str]) -> Rows:
        """Read the rows of a span."""
        with self._path.open("rb") as file:
            if self._form == "csv" and self._header is None:
                self._read_header(Lines(file, self._path))
            file.seek(span.start)
            lines = Lines(file, self._path, span.end)
            records = [record for some in self._records(lines) for record in some]
        if len(records) != span.rows:
            raise UsageError(
                f"{self._path} has changed: {len(records)} rows where {span.rows} were"
            )
        return Rows(
            [record.get(text_column) for record in records],
            {name: [record.get(name) for record in records] for name in columns},
        )

    def _read_header(self, lines: Lines) -> None:
        if self._form == "lines":
            self._kinds["text"] = set()
        if self._form != "csv":
            return
        header = next(_csv_rows(lines), None)
        if header is None:
            raise UsageError(f"{self._path} is empty: a CSV file starts with the names of columns")
        for name in header:
            if not name or header.count(name) > 1:
                raise lines.error("has an empty or repeated name of a column")
        self._header = header
        self._kinds = {name: set() for name in header}

    def _check(self, record: Record, text_column: str, lines: Lines) -> bool:
        """Check a row, and note the kinds of its values; return whether it has a text."""
        text = record.get(text_column)
        if not isinstance(text, str | None):
            raise lines.error(f"has no text in {text_column!r} but {_json_type(text)}")
        for name, value in record.items():
            self._kinds.setdefault(name, set()).add(kind_of(value))
        return text is not None

    def _records(self, lines: Lines) -> Iterator[list[Record]]:
        """Yield the rows of each line, or of the lines of one CSV row; `lines` stands after it."""
        if self._form == "lines":
            return ([{"text": line.removesuffix("\n").removesuffix("\r")}] for line in lines)
        if self._form == "csv":
            return self._csv_records(lines)
        return self._json_records(lines)

    def _csv_records(self, lines: Lines) -> Iterator[list[Record]]:
        header = self._header or []
        for row in _csv_rows(lines):
            if len(row) != len(header):
                raise lines.error(f"ends a row of {len(row)} fields where {len(header)} are due")
            yield [dict(zip(header, row, strict=True))]

    def _json_records(self, lines: Lines) -> Iterator[list[Record]]:
        for line in lines:
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise lines.error("is not a JSON object")
            yield [record] if self._form == "jsonl" else self._request_rows(record, lines)

    def _request_rows(self, request: Record, lines: Lines) -> list[Record]:
        try:
            rows = request_rows(request)
            self.requested.add(request_options(request))
        except BatchRequestError as error:
            raise lines.error(str(error)) from None
        return rows


def _csv_rows(lines: Lines) -> Iterator[list[str]]:
    """Yield the rows of a CSV file; it has none for a blank line."""
    csv.field_size_limit(_LINE_BYTES_MAX)
    try:
        yield from filter(None, csv.reader(lines, strict=True))
    except csv.Error as error:
        raise lines.error(f"is not CSV: {error}") from None


def _json_type(value: Any) -> str:
    names: Iterable[tuple[type, str]] = ((bool, "a boolean"), (int, "a number"))
    more = ((float, "a number"), (list, "a list"), (dict, "an object"))
    return next(name for kind, name in (*names, *more) if isinstance(value, kind))
