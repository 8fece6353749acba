import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedgrpc.client.bulk.json_numbers import json_numbers
from tests.client.bulk.conftest import FAILING, ROWS, Bulk, check, table, write
from tests.client.made_up import DIMENSIONS, vector_of


def json_rows(path: Path) -> list[Any]:
    """Parse a file of JSON Lines."""
    return list(map(json.loads, path.read_text("utf-8").splitlines()))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl", ".csv"])
def test_every_format_is_read(suffix: str, bulk: Bulk, tmp_path: Path) -> None:
    """Rows keep their order, ids and columns; a text that fails has a reason and no vector."""
    rows = table()
    source = write(rows, tmp_path / f"in{suffix}")
    flags = ("--id-column", "id", "--keep", "number", "--unit-rows", 32)
    errors = bulk(source, "--output", tmp_path / "out", *flags, status=1)
    assert "1 of 150 rows failed" in errors
    output = pq.read_table(tmp_path / "out")
    assert output.column_names == ["id", "number", "embedding", "error"]
    check(output, rows)
    numbers = rows["number"].to_pylist()
    assert output["number"].to_pylist() == (
        list(map(str, numbers)) if suffix == ".csv" else numbers
    )
    assert output.schema.field("embedding").type == pa.list_(pa.float32(), DIMENSIONS)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_every_format_is_written(suffix: str, bulk: Bulk, tmp_path: Path) -> None:
    """One file holds all rows of several inputs, and the folder of its parts keeps no vectors."""
    halves = [table(90, failing=()), table(70, failing=()).slice(5)]
    sources = [write(rows, tmp_path / f"in{number}.parquet") for number, rows in enumerate(halves)]
    output = tmp_path / f"all.vectors{suffix}"
    bulk(*sources, "--output", output, "--id-column", "id", "--unit-rows", 32)
    written = {
        ".parquet": lambda: pq.read_table(output),
        ".arrow": lambda: pa.ipc.open_file(output.read_bytes()).read_all(),
        ".jsonl": lambda: pa.Table.from_pylist(json_rows(output)),
    }[suffix]()
    check(written, pa.concat_tables(halves))
    assert not list(tmp_path.glob("*.parts/part-*"))
    assert "embedgrpc-client" not in bulk(
        *sources, "--output", output, "--id-column", "id", "--unit-rows", 32
    ).replace("embedgrpc-client: 100%", "")


def test_an_array_is_written_with_the_ids_beside_it(bulk: Bulk, tmp_path: Path) -> None:
    """The array has a row for each row, NaN where it failed; the other file says which is which."""
    rows = table()
    source = write(rows, tmp_path / "in.parquet")
    bulk(source, "--output", tmp_path / "v.npy", "--id-column", "id", "--unit-rows", 64, status=1)
    vectors = np.load(tmp_path / "v.npy")
    beside = json_rows(tmp_path / "v.rows.jsonl")
    assert vectors.shape == (ROWS, DIMENSIONS)
    assert [one["id"] for one in beside] == rows["id"].to_pylist()
    assert np.isnan(vectors[FAILING]).all()
    assert beside[FAILING]["error"] == "INPUT_TOO_LONG: as asked"
    assert np.array_equal(vectors[0], vector_of("text 0 ä"))


def test_encodings_keep_their_types(bulk: Bulk, tmp_path: Path) -> None:
    """float16 stays float16, int8 has a scale, ubinary is bytes of a fixed size."""
    source = write(table(20, failing=(3,)), tmp_path / "in.parquet")
    types = {
        "float16": pa.list_(pa.float16(), DIMENSIONS),
        "bfloat16": pa.list_(pa.float32(), DIMENSIONS),
        "int8": pa.list_(pa.int8(), DIMENSIONS),
        "ubinary": pa.binary(2),
    }
    for encoding, due in types.items():
        bulk(source, "--output", tmp_path / encoding, "--encoding", encoding, status=1)
        output = pq.read_table(tmp_path / encoding)
        assert output.schema.field("embedding").type == due
        assert output["embedding"].null_count == 1
        assert ("scale" in output.column_names) == (encoding == "int8")
        assert output["id"].to_pylist() == list(range(20))
        (metadata,) = {
            pq.ParquetFile(path).metadata.row_group(0).column(1).encodings
            for path in (tmp_path / encoding).glob("*.parquet")
        }
        assert not [one for one in metadata if "DICTIONARY" in one]


def test_sparse_and_multi_vectors_have_columns_of_their_own(bulk: Bulk, tmp_path: Path) -> None:
    """Indices and values of sparse vectors, and a list of vectors for each text."""
    source = write(table(5, failing=(3,)), tmp_path / "in.parquet")
    for encoding in ("float32", "int8", "ubinary"):
        out = tmp_path / encoding
        flags = ("--representations", "sparse,multi_vector", "--encoding", encoding)
        bulk(source, "--output", out, *flags, status=1)
        output = pq.read_table(out)
        assert "embedding" not in output.column_names
        assert output["multi_vector"].null_count == output["sparse_values"].null_count == 1
        first = output.slice(0, 1).to_pylist()[0]
        assert first["sparse_indices"] == sorted(set("text 0 ä".encode()))
        assert len(first["multi_vector"]) == 3
        if encoding == "float32":
            assert np.array_equal(first["multi_vector"][0], vector_of("text"))
        if encoding == "int8":
            assert first["multi_vector_scales"] == [1, 2, 3]
    bulk(source, "--output", tmp_path / "j.jsonl", *flags, status=1)
    lines = json_rows(tmp_path / "j.jsonl")
    assert lines[0]["sparse_indices"] == first["sparse_indices"]
    assert lines[3]["multi_vector"] is None


def test_standard_input_is_read(
    bulk: Bulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines by default; the same input goes on, another is refused."""

    def feed(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    feed(b"a tower\r\nlong river\n\xe5\xa1\x94")
    bulk("-", "--output", tmp_path / "out")
    check_lines = pq.read_table(tmp_path / "out")["embedding"].to_pylist()
    assert np.array_equal(
        check_lines, [vector_of(text) for text in ("a tower", "long river", "塔")]
    )
    feed(b"a tower\r\nlong river\n\xe5\xa1\x94")
    bulk("-", "--output", tmp_path / "out")
    feed(b"another")
    assert "sha256" in bulk("-", "--output", tmp_path / "out", status=2)


def test_csv_may_hold_line_breaks(bulk: Bulk, tmp_path: Path) -> None:
    """Units end between rows, not between lines; quotes, a byte order mark and blank lines too."""
    texts = [f'a "quoted"\r\n\n, text {number}' for number in range(9)]
    with (tmp_path / "in.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text", "name"], *([text, "x"] for text in texts)])
        file.write("\r\n")
    bulk(tmp_path / "in.csv", "--output", tmp_path / "out", "--keep", "all", "--unit-rows", 2)
    output = pq.read_table(tmp_path / "out")
    assert output["text"].to_pylist() == texts
    assert np.array_equal(output["embedding"].to_pylist(), list(map(vector_of, texts)))
    assert len(list((tmp_path / "out").glob("part-*"))) == 5


def test_columns_of_json_get_one_type(bulk: Bulk, tmp_path: Path) -> None:
    """Of all rows of all files; values of several types, lists and objects become JSON."""
    first = {"text": "a", "n": 1, "f": 1, "b": True, "o": {"x": 1}, "m": 1, "z": None}
    second = {"text": None, "n": 2, "f": 0.5, "b": None, "o": [1], "m": "s"}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(first)}\n\n")
    (tmp_path / "b.jsonl").write_text(f"{json.dumps(second)}\n{json.dumps({'text': 'b'})}")
    sources = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    bulk(*sources, "--output", tmp_path / "out", "--keep", "n,f,b,o,m,z", status=1)
    kept = pq.read_table(tmp_path / "out").select(["n", "f", "b", "o", "m", "z"])
    names = {field.name: str(field.type) for field in kept.schema}
    strings = dict.fromkeys("omz", "string")
    assert names == {"n": "int64", "f": "double", "b": "bool", **strings}
    assert kept["o"].to_pylist() == ['{"x": 1}', "[1]", None]
    assert pq.read_table(tmp_path / "out")["error"][1].as_py() == "EMPTY_INPUT: the text is null"


PARQUET = "in.parquet"
REFUSED = {
    "unknown text column": ((PARQUET, "--text-column", "txt"), "no column 'txt'"),
    "unknown id": ((PARQUET, "--id-column", "ID"), "no column 'ID'"),
    "unknown column to keep": ((PARQUET, "--keep", "nmber"), "did you mean number?"),
    "text of another type": ((PARQUET, "--text-column", "number"), "is no text but int64"),
    "column without values": ((PARQUET, "--text-column", "empty"), "is empty in every row"),
    "no file": (("absent.parquet",), "absent.parquet is not a file"),
    "another format": (("notes.parquet",), "is not a file of parquet"),
    "unknown suffix": (("notes.md",), "--input-format"),
    "several formats": ((PARQUET, "in.jsonl"), "several formats"),
    "no JSON": (("bad.jsonl",), "bad.jsonl: line 2 is not a JSON object"),
    "a number as text": (("number.jsonl",), "line 1 has no text in 'text' but a number"),
    "no UTF-8": (("latin.txt",), "latin.txt: line 2 is not UTF-8 at byte 1"),
    "a short row": (("short.csv",), "line 3 ends a row of 1 fields where 2 are due"),
    "an open quote": (("open.csv",), "open.csv: line 2 is not CSV"),
    "no rows": (("empty.jsonl",), "the inputs have no rows"),
    "a column of ours": (("ours.jsonl", "--keep", "error"), "has a column 'error' of its own"),
    "other columns": ((PARQUET, "other.parquet", "--keep", "number"), "is string in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_work(
    case: str, bulk: Bulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file, the column or the line, never the text; nothing is sent."""
    monkeypatch.chdir(tmp_path)
    rows = table(3).append_column("empty", pa.array([None] * 3, pa.string()))
    write(rows, Path(PARQUET))
    write(table(3), Path("in.jsonl"))
    write(pa.table({"text": ["a"], "number": ["1"]}), Path("other.parquet"))
    Path("notes.parquet").write_text("secret")
    Path("notes.md").write_text("secret")
    Path("bad.jsonl").write_text('{"text": "a"}\nsecret\n')
    Path("number.jsonl").write_text('{"text": 3}\n')
    Path("latin.txt").write_bytes(b"a\nb\xe4\n")
    Path("short.csv").write_text("text,b\nx,y\nsecret\n")
    Path("open.csv").write_text('text,b\n"secret,y\n')
    Path("empty.jsonl").write_text("\n")
    Path("ours.jsonl").write_text('{"text": "a", "error": "b"}\n')
    arguments, due = REFUSED[case]
    errors = bulk(*arguments, "--output", "out", status=2)
    assert due in errors
    assert "secret" not in errors
    assert errors.count("\n") == 1


def test_numbers_have_few_digits() -> None:
    """A float32 has at most nine digits, and is read back unchanged."""
    generator = np.random.default_rng(3)
    numbers = generator.standard_normal(1000).astype(np.float32)
    numbers *= np.float32(10.0) ** generator.integers(-20, 20, 1000).astype(np.float32)
    text = json_numbers(numbers)
    assert np.array_equal(np.array(json.loads(text), np.float32), numbers)
    assert len(text) < 16 * 1000
    assert json_numbers(np.float32(0.1)) == "0.1"
    assert json_numbers(np.array([[1, -2]], np.int8)) == "[[1, -2]]"


def test_without_pyarrow_lines_work_and_the_others_name_it(
    bulk: Bulk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON Lines need no more than the client; Parquet names what to install."""
    source = write(table(5, failing=()), tmp_path / "in.jsonl")
    parquet = write(table(5, failing=()), tmp_path / "in.parquet")
    for name in [one for one in sys.modules if one.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    bulk(source, "--output", tmp_path / "out.jsonl", "--id-column", "id", "--keep", "all")
    due = 'needs pyarrow: pip install "embedgrpc-client[bulk]"'
    assert due in bulk(source, "--output", tmp_path / "out", status=2)
    assert due in bulk(parquet, "--output", tmp_path / "p.jsonl", status=2)
