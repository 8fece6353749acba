import re
import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedgrpc.client.cli import main
from tests.client.bulk.conftest import table, write

DOCS = Path(__file__).parents[3] / "docs" / "bulk.md"
COMMANDS = re.findall(r"^embedgrpc-client (bulk .*)$", DOCS.read_text("utf-8"), re.MULTILINE)


def test_each_command_runs(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the page run as they are, on files with those names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDGRPC_TARGET", target)
    rows = table(20, failing=())
    titled = rows.append_column("title", rows["text"])
    for suffix in ("parquet", "jsonl", "csv"):
        write(titled, Path(f"texts.{suffix}"))
    Path("lines.txt").write_text("a tower\nlong river\n")
    assert COMMANDS
    for command in COMMANDS:
        words, _, stdin = command.partition(" < ")
        with Path(stdin or "lines.txt").open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            assert main(shlex.split(words)) == 0
    assert pq.read_table("vectors").column_names == ["id", "title", "embedding", "error"]
    assert pq.read_table("lines").num_rows == 2
    assert Path("vectors.jsonl").exists()
    assert Path("vectors.rows.jsonl").exists()
