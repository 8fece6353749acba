"""The examples of data engines, each in an environment of its own, against a real server."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedgrpc.client import Client
from tests.clients.environment import ROOT, EnvironmentMissingError, find_engine
from tests.endurance.relay import Relay
from tests.server.service import PATIENCE_S
from tests.service.conftest import FIXTURES, running_server

EXAMPLES = ROOT / "examples" / "engines"
PROGRAMS = Path(__file__).parent / "programs"
EMPTY = 700  # the row without a text
pytestmark = [pytest.mark.clients, pytest.mark.timeout(10 * PATIENCE_S)]
LIGHT = ["datasets_map", "dask_frames", "polars_frame", "duckdb_table"]


@pytest.fixture(scope="module")
def target(cache_dir: Path) -> Iterator[str]:
    """The address of a server with a tiny model."""
    with running_server("--model", str(FIXTURES / "bert-mean"), cache_dir=cache_dir) as address:
        yield address


def write(path: Path, rows: int) -> pa.Table:
    """Write documents in groups of rows; one has no text."""
    texts = [f"the tower is {row} metres tall" for row in range(rows)]
    texts[EMPTY] = ""
    table = pa.table({"id": [f"d{row}" for row in range(rows)], "text": texts})
    pq.write_table(table, path, row_group_size=500)
    return table


def check(made: pa.Table, documents: pa.Table, target: str) -> None:
    """Check that each id is there once, with the vector of its text or its error."""
    made = made.sort_by("id")
    documents = documents.sort_by("id")
    assert made["id"].to_pylist() == documents["id"].to_pylist()
    assert made["text"].to_pylist() == documents["text"].to_pylist()
    place = documents["text"].to_pylist().index("")
    errors = made["error"].to_pylist()
    assert errors.pop(place).startswith("EMPTY_INPUT: ")
    assert not any(errors)
    vectors = made["embedding"].to_pylist()
    assert vectors.pop(place) is None
    texts = documents["text"].to_pylist()
    del texts[place]
    with Client(target) as client:
        np.testing.assert_allclose(np.array(vectors), client.encode(texts), atol=1e-5)


def find(engine: str) -> str:
    """Return the interpreter of an engine, or skip the test."""
    try:
        return str(find_engine(engine))
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI") and engine == "light":
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


def environment(home: Path, interpreter: str) -> Mapping[str, str]:
    """Return the variables of a program: its own home, this client, and nothing sent elsewhere."""
    return {
        "PATH": f"{Path(interpreter).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "clients/python/src"),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # Two threads, and four attempts at each task: the program sets no master.
        "PYSPARK_SUBMIT_ARGS": "--master local[2,4] --conf spark.ui.enabled=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
        **{name: os.environ[name] for name in ("JAVA_HOME",) if name in os.environ},
    }


@asynccontextmanager
async def started(
    interpreter: str, program: Path, *arguments: object, home: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program; end it and all that it started."""
    process = await asyncio.create_subprocess_exec(
        *(interpreter, str(program), *map(str, arguments)),
        cwd=home,
        env=environment(home, interpreter),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            for pid in [*descendants(process.pid), process.pid]:
                kill(pid)
            await process.wait()


async def run(interpreter: str, program: Path, *arguments: object, home: Path) -> str:
    """Run a program to its end; return what it printed."""
    async with started(interpreter, program, *arguments, home=home) as process:
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    return output.decode()


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def command_of(pid: int) -> str:
    """Return the command line of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ")
    except OSError:
        return ""


def kill(pid: int) -> None:
    """Kill a process, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
async def test_an_engine_embeds_parquet(name: str, target: str, tmp_path: Path) -> None:
    """Each id is there once, with the vector of its text; the empty text has its reason."""
    interpreter = find("light")
    documents = write(tmp_path / "in.parquet", 3_000)
    output = tmp_path / "out"
    program = EXAMPLES / f"{name}.py"
    printed = await run(
        interpreter, program, target, tmp_path / "in.parquet", output, home=tmp_path
    )
    if name == "duckdb_table":
        assert "metres tall" in printed
        export = tmp_path / "export.py"
        export.write_text(
            # Cast: pyarrow 26 refuses what DuckDB 2.0.1 writes of arrays that are null.
            "import duckdb, sys\n"
            "rows = 'SELECT * REPLACE (embedding::FLOAT[] AS embedding) FROM vectors'\n"
            "duckdb.connect(sys.argv[1]).sql(rows).write_parquet(sys.argv[2])"
        )
        await run(interpreter, export, output, tmp_path / "out.parquet", home=tmp_path)
        output = tmp_path / "out.parquet"
    check(pq.read_table(output), documents, target)


def test_every_program_is_run() -> None:
    """Each of the folder is one that a test here runs, and its README names it."""
    programs = {path.stem for path in EXAMPLES.glob("*.py")}
    assert programs == {*LIGHT, "ray_data", "spark"}
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(f"[{name}.py]({name}.py)" in readme for name in programs)


@pytest.mark.slow
async def test_data_frames_get_columns(target: str, tmp_path: Path) -> None:
    """Those of pandas and Polars keep their type, index and other columns."""
    await run(find("light"), PROGRAMS / "frames.py", target, home=tmp_path)


class Watched(Relay):
    """Tells when the server has sent enough that the work is under way."""

    def __init__(self, target: str, after_bytes: int) -> None:
        super().__init__(target, cut_after_bytes=after_bytes)
        self.is_under_way = asyncio.Event()

    def cut(self) -> None:
        """Tell it; cut nothing."""
        self.is_under_way.set()


def is_actor_of_ray(pid: int, _: set[int]) -> bool:
    """Whether a process is an actor that embeds: Ray writes what it runs into the command line."""
    return re.match(r"ray::.*EmbedBatch", command_of(pid)) is not None


def is_worker_of_spark(pid: int, others: set[int]) -> bool:
    """Whether a process is a Python worker: a child of the daemon, with the same command line."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    is_python = "pyspark.daemon" in command_of(pid)
    parent = int(fields[1])
    return is_python and parent in others and "pyspark.daemon" in command_of(parent)


@dataclass(frozen=True)
class Clustered:
    """An engine with workers of its own.

    Attributes:
        program: Its program among the examples.
        environment: Where it is installed.
        is_worker: Whether a process is a worker that embeds, among those that the program started.
        told: What it prints when a worker died.
    """

    program: str
    environment: str
    is_worker: Callable[[int, set[int]], bool]
    told: str


CLUSTERED = [
    Clustered("ray_data", "ray", is_actor_of_ray, "A worker died or was killed"),
    Clustered("spark", "spark", is_worker_of_spark, "Lost task"),
]


@pytest.mark.nightly
@pytest.mark.parametrize("engine", CLUSTERED, ids=lambda one: one.program)
async def test_an_engine_goes_on_after_a_worker_is_killed(
    engine: Clustered, target: str, tmp_path: Path
) -> None:
    """A worker dies in the middle: each id is there once all the same, with its vector."""
    interpreter = find(engine.environment)
    documents = write(tmp_path / "in.parquet", 60_000)
    output = tmp_path / "out"
    relay = Watched(target, after_bytes=2_000_000)
    listener = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    async with listener:
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        arguments = (address, tmp_path / "in.parquet", output)
        program = EXAMPLES / f"{engine.program}.py"
        async with started(interpreter, program, *arguments, home=tmp_path) as process:
            ended = asyncio.ensure_future(process.communicate())
            under_way = asyncio.ensure_future(relay.is_under_way.wait())
            await asyncio.wait({ended, under_way}, return_when=asyncio.FIRST_COMPLETED)
            assert not ended.done(), ended.result()[0].decode()
            started_by_it = set(descendants(process.pid))
            kill(next(pid for pid in started_by_it if engine.is_worker(pid, started_by_it)))
            printed, _ = await ended
            assert process.returncode == 0, printed.decode()
            assert engine.told in printed.decode()
    made = pa.concat_tables(pq.read_table(file) for file in output.rglob("*.parquet"))
    check(made, documents, target)
