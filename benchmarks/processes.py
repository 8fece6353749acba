"""The programs that are compared, each a process of its own, so that each is measured alike."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from embedgrpc.server.settings.model_settings import DEFAULT_MODEL

_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Returns the CPU seconds that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S


def machine_cpu_s() -> float:
    """Returns the CPU seconds that all programs have used, and other machines of the host."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, interrupts, soft_interrupts, steal = map(int, line.split()[1:9])
    return (user + nice + system + interrupts + soft_interrupts + steal) / _CLOCK_TICKS_PER_S


def peak_rss_bytes(pid: int) -> int:
    """Returns the most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} tells no VmHWM")


def proportional_bytes(pid: int) -> int:
    """Returns the memory of a process now; what is mapped several times counts once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} tells no Pss")


class RunningServer:
    """A server that serves.

    Attributes:
        target: Where it listens.
        pid: Its process.
        start_s: Time from its start to SERVING.
        totals: Its count of batches and tokens by model; after it has stopped.
    """

    def __init__(self, process: "subprocess.Popen[str]", target: str, start_s: float) -> None:
        self.target = target
        self.pid = process.pid
        self.start_s = start_s
        self.totals: dict[str, dict[str, Any]] = {}


def keep_a_core() -> frozenset[int]:
    """Keeps one core for this process alone; returns the others, none where there is but one.

    To be called before there are threads.
    """
    cores = sorted(os.sched_getaffinity(0))
    others = frozenset(cores[:-1])
    if others:
        os.sched_setaffinity(0, cores[-1:])
    return others


@contextmanager
def server(
    *flags: str,
    source: str = DEFAULT_MODEL.source,
    weight_type: str = "float32",
    cores: Collection[int] = (),
) -> Iterator[RunningServer]:
    """Runs `embedgrpc serve` on a free port until the block ends.

    Args:
        flags: Its flags.
        source: Where its model comes from.
        weight_type: The type of the model's weights.
        cores: Where it may run; none for everywhere.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f'[[models]]\nsource = "{source}"\nweight_type = "{weight_type}"\n')
        config.flush()
        with _process(*flags, "--config", config.name, cores=cores) as running:
            yield running


@contextmanager
def _process(*flags: str, cores: Collection[int]) -> Iterator[RunningServer]:
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "embedgrpc.cli.main", "serve"),
            *("--address", "127.0.0.1:0", "--log-format", "json", *flags),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    if cores:
        # At once: it has no other threads yet, and has not counted its cores.
        os.sched_setaffinity(process.pid, cores)
    try:
        lines = _lines(process)
        target = ""
        for line in lines:
            if line["event"] == "serving":
                target = line["address"]
                break
        else:
            raise RuntimeError("the server ended before it served")
        running = RunningServer(process, target, time.perf_counter() - began)
        yield running
        process.terminate()
        running.totals = {line["model"]: line for line in lines if line["event"] == "model totals"}
    finally:
        process.terminate()
        process.wait(60)


def _lines(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    if process.stderr is None:
        raise ValueError("the server's log is not piped")
    for line in process.stderr:
        if line.startswith("{"):
            yield json.loads(line)
        else:
            # Why it does not start, or a line of gRPC's own log.
            sys.stderr.write(line)


class RawLoop:
    """A bare ONNX Runtime session in a process, told what to do line by line."""

    def __init__(self, weight_type: str = "float32") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.raw_loop", weight_type],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the raw loop is not piped")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer
