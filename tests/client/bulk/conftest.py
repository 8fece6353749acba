import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from embedgrpc.client.cli import main
from tests.client.made_up import vector_of
from tests.client.servicer import Script

ROWS = 150
FAILING = 40  # the place of a row that fails


class Bulk(Protocol):
    """Runs `embedgrpc-client bulk` in this process."""

    def __call__(
        self, *arguments: object, status: int = 0, patience_s: float = 60, at: str = ""
    ) -> str:
        """Run it to its end, assert its exit code, and return what it wrote on standard error."""


@pytest.fixture
def bulk(target: str, script: Script, capfd: pytest.CaptureFixture[str]) -> Bulk:
    """The command, with a server whose window holds many texts."""
    script.max_in_flight_inputs = 128
    script.max_batch_inputs = 32

    def run(*arguments: object, status: int = 0, patience_s: float = 60, at: str = "") -> str:
        flags = ("--target", at or target, "--patience", str(patience_s))
        code = main(["bulk", *map(str, arguments), *flags])
        errors = capfd.readouterr().err
        assert code == status, errors
        return errors

    return run


def table(rows: int = ROWS, *, failing: Sequence[int] = (FAILING,)) -> pa.Table:
    """Make rows with an id, a text and a number; some texts fail."""
    texts = ["fail:INPUT_TOO_LONG" if row in failing else f"text {row} ä" for row in range(rows)]
    ids = [f"d{row}" for row in range(rows)]
    return pa.table({"id": ids, "text": texts, "number": list(range(rows))})


def write(rows: pa.Table, path: Path) -> Path:
    """Write rows in the format that the suffix tells."""
    writers: dict[str, Callable[[], Any]] = {
        ".parquet": lambda: pq.write_table(rows, path, row_group_size=60),
        ".arrow": lambda: _write_arrow(rows, path),
        ".csv": lambda: pyarrow.csv.write_csv(rows, path),
        ".jsonl": lambda: path.write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows.to_pylist())
        ),
    }
    writers[path.suffix]()
    return path


def _write_arrow(rows: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=60)


def check(output: pa.Table, rows: pa.Table) -> None:
    """Check that each row is there once, in order, with the vector of its text or its error."""
    assert output["id"].to_pylist() == rows["id"].to_pylist()
    for text, vector, error in zip(
        rows["text"].to_pylist(),
        output["embedding"].to_pylist(),
        output["error"].to_pylist(),
        strict=True,
    ):
        if text.startswith("fail:"):
            assert (vector, error) == (None, f"{text.removeprefix('fail:')}: as asked")
        else:
            assert error is None
            assert np.array_equal(vector, vector_of(text))
