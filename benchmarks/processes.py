"""The programs to compare. Each is a process, so that all are measured alike."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from embedgrpc.server.settings.model_settings import DEFAULT_MODEL

_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# CPUCLOCK_SCHED.
_CPU_TIME = 2


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, over all its threads, those that have ended included.

    Source: clock_getcpuclockid(3), and MAKE_PROCESS_CPUCLOCK of Linux.
    """
    return time.clock_gettime((~pid << 3) | _CPU_TIME)


def machine_cpu_s() -> float:
    """Return the CPU seconds of all programs, and those stolen by other machines of the host."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, interrupts, soft_interrupts, steal = map(int, line.split()[1:9])
    return (user + nice + system + interrupts + soft_interrupts + steal) / _CLOCK_TICKS_PER_S


def peak_rss_bytes(pid: int) -> int:
    """Return the peak resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no VmHWM")


def proportional_bytes(pid: int) -> int:
    """Return the current memory of a process; pages that are mapped twice count once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no Pss")


class RunningServer:
    """A server that is SERVING.

    Attributes:
        target: Its address.
        pid: The id of its process.
        start_s: The time from its start to SERVING.
        totals: Its counts of batches and tokens by model, once it has stopped.
    """

    def __init__(self, process: "subprocess.Popen[str]", target: str, start_s: float) -> None:
        self.target = target
        self.pid = process.pid
        self.start_s = start_s
        self.totals: dict[str, dict[str, Any]] = {}


def keep_a_core() -> frozenset[int]:
    """Move this process to one core; return the other cores, none on a machine with one core.

    Call it before the process has threads.
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
    """Run `embedgrpc serve` on a free port until the block ends.

    Args:
        flags: Its flags.
        source: The source of its model.
        weight_type: The type of the model's weights.
        cores: The cores it may run on; none for all.
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
        # Before it has other threads, and before it counts its cores.
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
            # The reason why it does not start, or a line of gRPC's log.
            sys.stderr.write(line)


class Loop:
    """A process that answers requests line by line, as JSON.

    Args:
        command: The program and its arguments.
        env: Its environment; None for that of this process.

    Attributes:
        pid: The id of the process.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            RuntimeError: The process has ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the loop is not piped")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"this has ended: {self._process.args!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class RawLoop(Loop):
    """A process with a bare ONNX Runtime session.

    Args:
        weight_type: The type of the model's weights.
        source: The source of the model.
        spin_duration_us: How long the session's threads spin after a run; None for the default of
            the server.
    """

    def __init__(
        self,
        weight_type: str = "float32",
        *,
        source: str = DEFAULT_MODEL.source,
        spin_duration_us: int | None = None,
    ) -> None:
        spin = [] if spin_duration_us is None else [str(spin_duration_us)]
        super().__init__([sys.executable, "-m", "benchmarks.raw_loop", weight_type, source, *spin])
