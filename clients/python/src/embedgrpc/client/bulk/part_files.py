"""The formats of the output: how a part is written, and how parts become one file."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.bulk.arrow_tables import (
    open_arrow,
    open_parquet,
    read_arrow,
    read_parquet,
    to_table,
)
from embedgrpc.client.bulk.batch_requests import BATCH_FORMAT, answer_lines
from embedgrpc.client.bulk.durable import with_ending, write_whole
from embedgrpc.client.bulk.json_numbers import json_numbers
from embedgrpc.client.bulk.part import ERROR, Part, VectorForm
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.stored_rows import Stored, stored_fields, stored_table

MODEL: Final = "embedgrpc.model"
SOURCE: Final = "embedgrpc.source"
_PIECE_BYTES: Final = 2**20


class PartFormat(Protocol):
    """A format of the output.

    Attributes:
        suffixes: The suffixes of the files of a part; the first is that of the vectors.
    """

    suffixes: Sequence[str]

    def write(self, part: Part, stem: Path, metadata: Mapping[str, str]) -> None:
        """Write the files of a part; `stem` is their path without the suffix."""

    def join(self, stems: Sequence[Path], output: Path) -> None:
        """Write all parts into one file; `output` is its path without the suffix."""

    def stored(self, stem: Path, form: VectorForm) -> Stored:
        """Yield the place and the embedding of each row of a part that has one."""


class TableFormat:
    """Parquet, a row group for each part, or Arrow's IPC files, a batch for each part.

    Args:
        suffix: The suffix of the files.
        types: The types of the columns besides the embeddings.
        opens: Opens a writer for a file and a schema.
        reads: Reads the table of a file.
    """

    def __init__(
        self,
        suffix: str,
        types: Mapping[str, Any],
        opens: Callable[[BinaryIO, Any], Any],
        reads: Callable[[Path], Any],
    ) -> None:
        self.suffixes: Sequence[str] = (suffix,)
        self._suffix = suffix
        self._types = types
        self._opens = opens
        self._reads = reads

    def write(self, part: Part, stem: Path, metadata: Mapping[str, str]) -> None:
        """Write a part."""
        table = to_table(part, self._types, metadata)

        def write(file: BinaryIO) -> None:
            with self._opens(file, table.schema) as writer:
                writer.write_table(table)

        write_whole(with_ending(stem, self._suffix), write)

    def join(self, stems: Sequence[Path], output: Path) -> None:
        """Write all parts into one file, one after the other."""

        def write(file: BinaryIO) -> None:
            writer = None
            for stem in stems:
                table = self._reads(with_ending(stem, self._suffix))
                metadata = {**table.schema.metadata}
                metadata.pop(SOURCE.encode(), None)  # of the part alone
                table = table.replace_schema_metadata(metadata)
                writer = writer or self._opens(file, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()

        write_whole(with_ending(output, self._suffix), write)

    def stored(self, stem: Path, form: VectorForm) -> Stored:
        """Yield the embeddings of a part."""
        return stored_table(self._reads(with_ending(stem, self._suffix)), form)


class JsonLinesFormat:
    """A JSON object for each row, numbers with as few digits as they need."""

    suffixes: Sequence[str] = (".jsonl",)

    def write(self, part: Part, stem: Path, metadata: Mapping[str, str]) -> None:
        """Write a part."""
        del metadata  # the folder's manifest has it
        write_whole(
            with_ending(stem, self.suffixes[0]), lambda file: file.writelines(_json_lines(part))
        )

    def join(self, stems: Sequence[Path], output: Path) -> None:
        """Write all parts into one file, one after the other."""
        _concatenate(stems, output, self.suffixes[0])

    def stored(self, stem: Path, form: VectorForm) -> Stored:
        """Yield the embeddings of a part."""
        return stored_fields(_json_rows(with_ending(stem, self.suffixes[0])), form)


class NpyFormat:
    """One array of vectors; beside it a JSON object for each row, with its id and its error.

    Vectors of rows that failed are NaN, or 0 where the numbers are whole.
    """

    suffixes: Sequence[str] = (".npy", ".rows.jsonl")

    def write(self, part: Part, stem: Path, metadata: Mapping[str, str]) -> None:
        """Write a part."""
        del metadata  # the folder's manifest has it
        vectors = part.vectors
        if vectors is None:
            raise UsageError("an array of .npy holds dense vectors")
        if vectors.dtype.kind == "f":
            vectors[[row for row, error in enumerate(part.errors) if error is not None]] = np.nan
        write_whole(with_ending(stem, ".npy"), lambda file: np.save(file, vectors))
        write_whole(
            with_ending(stem, ".rows.jsonl"),
            lambda file: file.writelines(_json_lines(part, without=("embedding",))),
        )

    def join(self, stems: Sequence[Path], output: Path) -> None:
        """Write all parts into one array, one after the other."""
        arrays = [np.load(with_ending(stem, ".npy"), mmap_mode="r") for stem in stems]

        def write(file: BinaryIO) -> None:
            header = np.lib.format.header_data_from_array_1_0(arrays[0])
            header["shape"] = (sum(map(len, arrays)), arrays[0].shape[1])
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines(np.ascontiguousarray(array).data for array in arrays)

        _concatenate(stems, output, ".rows.jsonl")
        write_whole(with_ending(output, ".npy"), write)

    def stored(self, stem: Path, form: VectorForm) -> Stored:
        """Yield the embeddings of a part."""
        rows = _json_rows(with_ending(stem, ".rows.jsonl"))
        vectors = np.load(with_ending(stem, ".npy"))
        pairs = zip(rows, vectors, strict=True)
        return stored_fields([{**row, "embedding": vector} for row, vector in pairs], form)


class BatchFormat:
    """Answers to the requests of a batch file of OpenAI's API."""

    suffixes: Sequence[str] = (".jsonl",)

    def write(self, part: Part, stem: Path, metadata: Mapping[str, str]) -> None:
        """Write a part."""
        lines = answer_lines(part, metadata[MODEL])
        write_whole(with_ending(stem, ".jsonl"), lambda file: file.writelines(lines))

    def join(self, stems: Sequence[Path], output: Path) -> None:
        """Write all parts into one file, one after the other."""
        _concatenate(stems, output, ".jsonl")

    def stored(self, stem: Path, form: VectorForm) -> Stored:
        """Yield nothing: an answer has no vectors if one of its texts failed."""
        del stem, form
        return iter(())


OUTPUT_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".npy": "npy",
}
OUTPUT_FORMATS: Final = tuple(OUTPUT_SUFFIXES.values())


def part_format(name: str, types: Mapping[str, Any], representations: Sequence[str]) -> PartFormat:
    """Return a format of the output.

    Args:
        name: One of `OUTPUT_FORMATS`.
        types: The types of the columns besides the embeddings.
        representations: What the output holds besides.

    Raises:
        UsageError: The format cannot hold that.
    """
    if name == "npy" and tuple(representations) != ("dense",):
        raise UsageError("an array of .npy holds dense vectors and nothing else")
    if name == "parquet":
        return TableFormat(".parquet", types, open_parquet, read_parquet)
    if name == "arrow":
        return TableFormat(".arrow", types, open_arrow, read_arrow)
    if name == BATCH_FORMAT:
        return BatchFormat()
    return NpyFormat() if name == "npy" else JsonLinesFormat()


def _concatenate(stems: Sequence[Path], output: Path, suffix: str) -> None:
    def write(file: BinaryIO) -> None:
        for stem in stems:
            with with_ending(stem, suffix).open("rb") as part:
                shutil.copyfileobj(part, file, _PIECE_BYTES)

    write_whole(with_ending(output, suffix), write)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _json_lines(part: Part, without: Sequence[str] = ()) -> Iterable[bytes]:
    """Yield the lines of a part."""
    columns = {
        name: values if isinstance(values, list) else values.to_pylist()
        for name, values in part.columns.items()
    }
    form = part.form
    for row in range(part.unit.rows):
        fields = [f"{json.dumps(name)}: {_json(values[row])}" for name, values in columns.items()]
        error = part.errors[row]
        for name in form.columns:
            if name not in without:
                value = "null" if error is not None else _json_value(part, row, name)
                fields.append(f'"{name}": {json.dumps(error) if name == ERROR else value}')
        yield f"{{{', '.join(fields)}}}\n".encode()


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        return json.dumps(str(value))  # a date, a decimal number


def _json_value(part: Part, row: int, name: str) -> str:
    """Return one value of the embeddings of a row as JSON."""
    if name == "embedding" and part.vectors is not None:
        return json_numbers(part.vectors[row])
    if name == "scale":
        return json_numbers(part.scales[row])
    if name.startswith("sparse") and (sparse := part.sparse[row]) is not None:
        return json_numbers(sparse.indices if name == "sparse_indices" else sparse.values)
    multi_vector = part.multi_vectors[row] if part.multi_vectors else None
    if multi_vector is None:
        return "null"
    found: NDArray[Any] | None = (
        multi_vector.values if name == "multi_vector" else multi_vector.scales
    )
    return "null" if found is None else json_numbers(found)
