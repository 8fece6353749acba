"""The inputs of a run: their files, units and columns, checked before any work begins."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.arrow_source import ARROW_FORMATS, ArrowSource
from embedgrpc.client.bulk.column_kinds import common_kind
from embedgrpc.client.bulk.line_source import LINE_FORMATS, LineSource
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.units import Rows, Source, Unit
from embedgrpc.client.suggestions import suggest

_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "lines",
}
_INPUT_FORMATS: Final = (*ARROW_FORMATS, *LINE_FORMATS)
STDIN: Final = "-"
MADE_ID: Final = "id"
_PIECE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a run.

    Attributes:
        text: The one that is embedded.
        id: The one that goes first in the output; "" for a number that is made for each row.
        keep: Those that are kept besides.
        types: The type of the id and of each that is kept.
    """

    text: str
    id: str
    keep: tuple[str, ...]
    types: dict[str, Any]

    @property
    def id_name(self) -> str:
        """The name of the id in the output."""
        return self.id or MADE_ID


class Inputs:
    """All input files.

    Args:
        paths: The files; at least one.
        form: Their format; "" to go by the suffix.
        text_column: The column to embed.
        id_column: The column with the ids; "" for none.
        keep: The columns to keep; None for all.
        rows_max: The most rows of a unit.

    Attributes:
        units: The units of all files, in order.
        columns: The columns.
        rows: The number of all rows.
        rows_max: The number of rows of the largest unit.

    Raises:
        UsageError: A file is missing or malformed, has no such column, or its columns have other
            types than those of the first.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        form: str,
        text_column: str,
        id_column: str,
        keep: Sequence[str] | None,
        rows_max: int,
    ) -> None:
        self.paths = tuple(paths)
        forms = {form or _form_of(path) for path in paths}
        if len(forms) > 1:
            raise UsageError(f"the inputs are of several formats: {', '.join(sorted(forms))}")
        self.form = forms.pop()
        self._sources: list[Source] = []
        self.units: list[Unit] = []
        self.rows = 0
        for index, path in enumerate(paths):
            if not path.is_file():
                raise UsageError(f"{path} is not a file")
            source: Source = (
                ArrowSource(path, self.form)
                if self.form in ARROW_FORMATS
                else LineSource(path, self.form)
            )
            self._sources.append(source)
            for span in source.plan(rows_max, text_column):
                self.units.append(Unit(len(self.units), index, self.rows, span))
                self.rows += span.rows
        self.rows_max = max((unit.rows for unit in self.units), default=0)
        self.columns = self._choose(text_column, id_column, keep)

    def read(self, unit: Unit) -> Rows:
        """Read the rows of a unit, with the id first among the columns."""
        columns = self.columns
        names = [columns.id, *columns.keep] if columns.id else list(columns.keep)
        rows = self._sources[unit.input_index].read(unit.span, columns.text, names)
        if columns.id:
            return rows
        made = list(range(unit.first_row, unit.first_row + unit.rows))
        return Rows(rows.texts, {MADE_ID: made, **rows.columns})

    def requested(self) -> set[tuple[str, int]]:
        """Return the models and dimensions that the lines of batch files ask for."""
        sources = [one for one in self._sources if isinstance(one, LineSource)]
        return {asked for source in sources for asked in source.requested}

    def move(self, path: Path) -> None:
        """Record that the only input has another path now."""
        self.paths = (path,)
        self._sources = [LineSource(path, self.form)]

    def identities(self) -> list[dict[str, Any]]:
        """Return what tells whether a file has changed: path, size and time of change."""
        return [
            {
                "path": str(path.resolve()),
                "bytes": path.stat().st_size,
                "changed_ns": path.stat().st_mtime_ns,
            }
            for path in self.paths
        ]

    def _choose(self, text: str, id_column: str, keep: Sequence[str] | None) -> Columns:
        if not self.units:
            return Columns(text, id_column, (), {})
        known: dict[str, Any] = {}
        for source in self._sources:
            known |= source.types()
        kept = tuple(name for name in (known if keep is None else keep) if name != id_column)
        if len(set(kept)) < len(kept):
            raise UsageError("a column to keep is named twice")
        if not id_column and MADE_ID in kept:
            raise UsageError(
                f"the kept column {MADE_ID!r} has the name of the made ids: name it with"
                " --id-column"
            )
        named = dict.fromkeys((text, *([id_column] if id_column else []), *kept))
        for name in named:
            if name not in known:
                raise UsageError(
                    f"no column {name!r} in {self.paths[0]}{suggest(name, known)}"
                    f" (its columns: {', '.join(map(repr, known))})"
                )
        types = {name: self._type(name) for name in named}
        if not id_column:
            types[MADE_ID] = "int64"
        return Columns(text, id_column, kept, types)

    def _type(self, name: str) -> Any:
        """Return the type of a column, which must be that of every file.

        In files of JSON Lines, a column has the kind that fits the values of all files, and a file
        may lack it.
        """
        found = [source.types().get(name) for source in self._sources]
        if self.form == "jsonl":
            return common_kind(kind for kinds in found if kinds for kind in kinds)
        first = found[0] if self.form in ARROW_FORMATS else "string"
        for path, other in zip(self.paths, found, strict=True):
            if other is None or (self.form in ARROW_FORMATS and other != first):
                raise UsageError(
                    f"the column {name!r} is {'absent' if other is None else other} in {path} and"
                    f" {'absent' if first is None else first} in {self.paths[0]}"
                )
        return first


def spool_stdin(path: Path) -> str:
    """Copy standard input to a file; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while piece := sys.stdin.buffer.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _form_of(path: Path) -> str:
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"the suffix of {path} tells no format: name it with --input-format"
            f" ({', '.join(_INPUT_FORMATS)})"
        ) from None
