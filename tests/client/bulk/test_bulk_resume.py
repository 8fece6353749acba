import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.client.bulk.conftest import ROWS, Bulk, check, table, write
from tests.client.servicer import Script

COMMAND = str(Path(sys.executable).parent / "embedgrpc-client")
FLAGS = ("--id-column", "id", "--unit-rows", 16, "--batch-size", 16)


def inputs(script: Script) -> int:
    """Count the texts that the server received."""
    return sum(len(message.batch.inputs) for message in script.messages)


def test_a_run_goes_on_where_it_was(bulk: Bulk, script: Script, tmp_path: Path) -> None:
    """After a stop only what is missing is sent: units without their line or their file."""
    rows = table(600)  # more than the units that may be open at once
    source = write(rows, tmp_path / "in.parquet")
    out = tmp_path / "out"
    errors = bulk(source, "--output", out, *FLAGS, "--max-errors", 0, status=1)
    assert "more than 0 rows failed" in errors
    assert "run the same command again to go on" in errors
    done = len((out / "_done.jsonl").read_text().splitlines())
    assert 0 < done < 40
    with (out / "_done.jsonl").open("a") as file:
        file.write('{"part": 39, "ro')  # as a crash may leave it
    (out / ".part-00039.parquet.tmp").write_bytes(b"half")
    (out / "part-00000.parquet").unlink()
    before = inputs(script)
    bulk(source, "--output", out, *FLAGS, status=1)
    assert inputs(script) - before < 600
    check(pq.read_table(out), rows)
    before = inputs(script)
    bulk(source, "--output", out, *FLAGS, status=1)
    assert inputs(script) == before


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl", "npy"])
@pytest.mark.parametrize("encoding", ["float16", "int8", "ubinary"])
def test_rows_that_failed_are_tried_again(
    form: str, encoding: str, bulk: Bulk, tmp_path: Path, script: Script
) -> None:
    """They alone, and on request; the others keep what they have, to the byte."""
    source = write(table(), tmp_path / "in.parquet")
    out = tmp_path / "out"
    kinds = "dense" if form == "npy" else "dense,sparse,multi_vector"
    of_output = ("--output-format", form, "--encoding", encoding, "--representations", kinds)
    flags = (*FLAGS, *of_output, "--keep", "number")
    bulk(source, "--output", out, *flags, status=1)
    files = {path.name: path.read_bytes() for path in out.glob("part-*")}
    before = inputs(script)
    bulk(source, "--output", out, *flags, "--retry-failed", status=1)
    assert inputs(script) - before == 1
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == files


def test_a_file_that_is_gone_is_made_again(bulk: Bulk, tmp_path: Path) -> None:
    """A joined file has no parts left: without it everything is to be done."""
    rows = table(20, failing=())
    source = write(rows, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    bulk(source, "--output", out, *FLAGS)
    out.unlink()
    bulk(source, "--output", out, *FLAGS)
    check(pq.read_table(out), rows)


@pytest.mark.parametrize(
    ("flags", "due"),
    [
        (("--encoding", "int8"), 'options is {"encoding": "int8"}'),
        (("--keep", "number"), 'keep is ["number"] and was []'),
        (("--unit-rows", "8"), "unit_rows is 8 and was 16"),
        (("--output-format", "jsonl"), 'output_format is "jsonl" and was "parquet"'),
    ],
)
def test_other_options_are_refused(
    flags: tuple[str, ...], due: str, bulk: Bulk, tmp_path: Path
) -> None:
    """The difference is named."""
    source = write(table(20, failing=()), tmp_path / "in.parquet")
    bulk(source, "--output", tmp_path / "out", *FLAGS)
    assert due in bulk(source, "--output", tmp_path / "out", *FLAGS, *flags, status=2)


def test_another_model_or_input_is_refused(bulk: Bulk, tmp_path: Path) -> None:
    """A fingerprint, a file that changed, and a folder of other files."""
    source = write(table(20, failing=()), tmp_path / "in.parquet")
    out = tmp_path / "out"
    bulk(source, "--output", out, *FLAGS)
    manifest = out / "_manifest.json"
    kept = json.loads(manifest.read_text())
    assert kept["fingerprint"] == "f1"
    manifest.write_text(json.dumps(kept | {"fingerprint": "f0"}))
    due = 'fingerprint is "f1" and was "f0"'
    assert due in bulk(source, "--output", out, *FLAGS, status=2)
    manifest.write_text(json.dumps(kept))
    os.utime(source, (1, 1))
    assert "inputs is" in bulk(source, "--output", out, *FLAGS, status=2)
    manifest.unlink()
    assert "no _manifest.json" in bulk(source, "--output", out, *FLAGS, status=2)


def test_a_broken_stream_loses_nothing(bulk: Bulk, script: Script, tmp_path: Path) -> None:
    """What was unanswered is sent again on a new stream; the wait is told."""
    rows = table(failing=())
    source = write(rows, tmp_path / "in.parquet")
    script.end_stream_after = 64
    script.reverse = True
    errors = bulk(source, "--output", tmp_path / "out", *FLAGS, "--batch-size", 32)
    assert "again in" in errors
    check(pq.read_table(tmp_path / "out"), rows)
    assert len(script.calls) >= 3


def test_a_row_that_fails_for_now_is_sent_again(bulk: Bulk, script: Script, tmp_path: Path) -> None:
    """A few times; then it has failed, and the others have not waited for it."""
    rows = table(failing=())
    rows = rows.set_column(
        1, "text", [["fail:OVERLOADED" if row == 5 else f"text {row} ä" for row in range(ROWS)]]
    )
    source = write(rows, tmp_path / "in.parquet")
    bulk(source, "--output", tmp_path / "out", *FLAGS, status=1)
    check(pq.read_table(tmp_path / "out"), rows)
    assert inputs(script) == ROWS + 3


def test_the_patience_ends(bulk: Bulk, tmp_path: Path) -> None:
    """Without a server the run ends with 1, and without a model with 2."""
    source = write(table(20, failing=()), tmp_path / "in.parquet")
    out = tmp_path / "out"
    errors = bulk(source, "--output", out, at="127.0.0.1:1", patience_s=0, status=1)
    assert "the connection to" in errors
    due = "MODEL_NOT_FOUND: no such model"
    assert due in bulk(source, "--output", tmp_path / "o", "--model", "absent", status=2)


def test_two_processes_do_not_share_an_output(bulk: Bulk, tmp_path: Path) -> None:
    """The second is refused while the first runs."""
    from embedgrpc.client.bulk.manifest import Progress  # noqa: PLC0415

    source = write(table(20, failing=()), tmp_path / "in.parquet")
    first = Progress(tmp_path / "out", {})
    due = "another process writes to"
    assert due in bulk(source, "--output", tmp_path / "out", status=2)
    first.close()
    bulk(source, "--output", tmp_path / "out")


@pytest.mark.slow  # the tests of the terminal do this, too
def test_ctrl_c_finishes_the_running_units(script: Script, target: str, tmp_path: Path) -> None:
    """They are written, the rest is left, and the last line says how to go on."""
    script.max_in_flight_inputs = 32
    script.max_batch_inputs = 16
    script.hold_answers = threading.Event()
    rows = table(failing=())
    source = write(rows, tmp_path / "in.parquet")
    arguments = [source, "--output", tmp_path / "out", *FLAGS, "--target", target]
    command = [COMMAND, "bulk", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert script.window_full.wait(60)
        process.send_signal(signal.SIGINT)
        assert "finishing the running units" in process.stderr.readline()
        script.hold_answers.set()
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to go on" in errors
    written = pq.read_table(tmp_path / "out").num_rows
    assert 0 < written < ROWS
    assert written % 16 in (0, 60 % 16, (60 + 60 % 16) % 16)
    finished = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
    check(pq.read_table(tmp_path / "out"), rows)
