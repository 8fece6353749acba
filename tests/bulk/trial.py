"""A bulk run that is disturbed at planned moments, and the run of the same rows in peace."""

import asyncio
import itertools
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedgrpc.client.bulk.manifest import DONE
from tests.endurance.relay import Relay, relaying
from tests.replicas.replica import Replica, running
from tests.server.service import FIXTURES

CLIENT_KILLS = 5
SERVER_KILLS = 3
CUTS = 2
_UNITS = 100  # so that every disturbance finds units under way
_ROWS_A_GROUP = 20_000
_COMMAND = str(Path(sys.executable).parent / "embedgrpc-client")
_LOOK_S = 0.02
_WORDS = ("the", "tower", "is", "tall", "and", "red", "river", "sea", "stone", "bridge", "old")


@dataclass
class Findings:
    """What the trial found.

    Attributes:
        quiet_s: The time of the undisturbed run.
        disturbed_s: The time of the disturbed run, restarts included.
        client_kills: How often the client was killed while it ran.
        server_kills: How often the server was.
        cuts: How often the network was cut.
        missing: Ids that the output lacks.
        repeated: Ids that it has more than once.
        failed: Rows with an error.
        difference_max: The greatest difference of two numbers of the same vector.
        memory_mib: The greatest resident memory of the undisturbed client in each third of its
            time.
    """

    quiet_s: float = 0.0
    disturbed_s: float = 0.0
    client_kills: int = 0
    server_kills: int = 0
    cuts: int = 0
    missing: int = 0
    repeated: int = 0
    failed: int = 0
    difference_max: float = 0.0
    memory_mib: list[float] = field(default_factory=list)


async def try_bulk(rows: int, folder: Path, *, seed: int = 0) -> Findings:
    """Run in peace and disturbed, and compare.

    Args:
        rows: How many short texts.
        folder: An empty folder.
        seed: Of the texts, and of the order of the disturbances.
    """
    source = folder / "in.parquet"
    _write_rows(source, rows, seed)
    findings = Findings()
    flags = ("--model", f"tiny={FIXTURES / 'bert-mean'}")
    async with running(1, folder / "graphs", *flags) as (server,):
        started_at = time.monotonic()
        quiet = _Client(source, folder / "quiet", rows, server.address)
        samples: list[float] = []
        async with quiet.running() as process:
            while process.returncode is None:
                samples.append(_resident_mib(process.pid))
                await asyncio.sleep(_LOOK_S)
        assert process.returncode == 0
        findings.quiet_s = time.monotonic() - started_at
        findings.memory_mib = [float(max(third)) for third in np.array_split(samples, 3)]
        started_at = time.monotonic()
        async with relaying(server.address) as relay:
            client = _Client(source, folder / "disturbed", rows, relay.address)
            await _disturb(client, server, relay, findings, seed)
        findings.disturbed_s = time.monotonic() - started_at
    _compare(folder / "quiet", folder / "disturbed", rows, findings)
    return findings


class _Client:
    """The command, which may be killed and started again.

    Args:
        source: The rows.
        output: The folder of the output.
        rows: How many there are.
        target: The server.
    """

    def __init__(self, source: Path, output: Path, rows: int, target: str) -> None:
        self._output = output
        self._command = [
            *(_COMMAND, "bulk", str(source), "--output", str(output), "--target", target),
            *("--id-column", "id", "--keep", "number", "--unit-rows", str(max(1, rows // _UNITS))),
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start it; kill it at the end of the block if it still runs."""
        process = await asyncio.create_subprocess_exec(
            *self._command, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def units_done(self) -> int:
        """Count the units that it has written."""
        path = self._output / DONE
        return path.read_bytes().count(b"\n") if path.exists() else 0


async def _disturb(
    client: _Client, server: Replica, relay: Relay, findings: Findings, seed: int
) -> None:
    """Run the client to its end; disturb it each time that it has written some units more."""
    events = [*["client"] * CLIENT_KILLS, *["server"] * SERVER_KILLS, *["cut"] * CUTS]
    random.Random(seed).shuffle(events)  # noqa: S311 -- no secret
    due = [_UNITS * (number + 1) // (len(events) + 2) for number in range(len(events))]
    plan = iter(zip(due, events, strict=True))
    event = next(plan, None)
    for _ in itertools.count():
        async with client.running() as process:
            while process.returncode is None:
                if event is not None and client.units_done() >= event[0]:
                    kind, event = event[1], next(plan, None)
                    if kind == "client":
                        process.send_signal(signal.SIGKILL)
                        await process.wait()
                        findings.client_kills += 1
                    elif kind == "server":
                        await server.kill()
                        findings.server_kills += 1
                        await server.start()
                    else:
                        relay.cut()
                        findings.cuts += 1
                await asyncio.sleep(_LOOK_S)  # the files of another process have no event
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, f"the client ended with {process.returncode}"
            return


def _compare(quiet: Path, disturbed: Path, rows: int, findings: Findings) -> None:
    """Compare the vectors of each id."""
    outputs = [pq.read_table(folder) for folder in (quiet, disturbed)]
    ids = [output["id"].to_numpy() for output in outputs]
    assert np.array_equal(ids[0], np.arange(rows))
    found, counts = np.unique(ids[1], return_counts=True)
    findings.missing = rows - len(found)
    findings.repeated = int((counts > 1).sum())
    findings.failed = rows - outputs[1]["error"].null_count
    if not (findings.missing or findings.repeated or findings.failed):
        vectors = [
            _vectors(output)[np.argsort(one)] for output, one in zip(outputs, ids, strict=True)
        ]
        findings.difference_max = float(np.abs(vectors[0] - vectors[1]).max())


def _vectors(output: pa.Table) -> NDArray[np.float32]:
    """Return the vectors of a table: float32 [rows, dimensions]."""
    chunks = [one.flatten().to_numpy() for one in output["embedding"].chunks]
    vectors: NDArray[np.float32] = np.concatenate(chunks).reshape(len(output), -1)
    return vectors


def _write_rows(path: Path, rows: int, seed: int) -> None:
    """Write short texts with ids, all different."""
    choose = random.Random(seed)  # noqa: S311 -- no secret
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("number", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _ROWS_A_GROUP):
            ids = list(range(start, min(start + _ROWS_A_GROUP, rows)))
            texts = [f"{' '.join(choose.choices(_WORDS, k=4))} {one}" for one in ids]
            numbers = [one % 7 for one in ids]
            writer.write_table(pa.table([ids, texts, numbers], schema=schema))


def _resident_mib(pid: int) -> float:
    """Return the memory that a process holds; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(sizes[0]) / 1024 if sizes else 0.0
