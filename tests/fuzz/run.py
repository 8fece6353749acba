"""Runs a target in other processes and collects findings."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.target import Finding, Report, Target
from tests.fuzz.worker import make_input

# Stop after this many different findings.
_PLACES_MAX = 20
# Stop after this many inputs that ended a process, as each costs a start.
_DEATHS_MAX = 50
_ENVIRONMENT = {
    # Makes address space a measure of the memory in use.
    "MALLOC_ARENA_MAX": "1",
    # One thread, so that CPU time is that of the input.
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    # Symbols for the backtrace of a panic exceed the memory limit.
    "RUST_BACKTRACE": "0",
}
_NOT_STARTED = (1 << 64) - 1
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a temporary folder is made in it


def fuzz(
    target: Target,
    *,
    runs: int,
    seconds: float,
    seed: int,
    first: int = 0,
    on_finding: Callable[[Finding, bytes], None] = lambda _finding, _content: None,
) -> Report:
    """Run mutated inputs.

    Args:
        target: The target.
        runs: The maximum number of inputs.
        seconds: The maximum duration.
        seed: Equal seeds give equal inputs.
        first: The number of the first input.
        on_finding: Gets each finding at a new place, and each death of a process that is no
            finding, with its input.

    Raises:
        RuntimeError: The target cannot be opened.
    """
    began = time.monotonic()
    run = _Run(target, seed, on_finding)
    end = first + runs
    while first < end and not run.has_enough:
        left_s = seconds - (time.monotonic() - began)
        if left_s <= 0:
            break
        first = run.work(first, end - first, left_s)
    return Report(
        executions=run.executions,
        refused=run.refused,
        deaths=run.deaths,
        findings=tuple(run.findings.values()),
        seconds=time.monotonic() - began,
        grown_bytes=run.grown_bytes,
    )


class _Run:
    """The results of the processes so far."""

    def __init__(
        self, target: Target, seed: int, on_finding: Callable[[Finding, bytes], None]
    ) -> None:
        self._target = target
        self._seed = seed
        self._on_finding = on_finding
        self.findings: dict[str, Finding] = {}
        self.executions = 0
        self.refused = 0
        self.deaths = 0
        self.grown_bytes = 0

    @property
    def has_enough(self) -> bool:
        """Whether there are enough findings."""
        died = self.deaths >= _DEATHS_MAX and not self._target.validated
        return died or len(self.findings) >= _PLACES_MAX

    def work(self, first: int, count: int, seconds: float) -> int:
        """Run one process until it is done or dies; return the number of the next input."""
        with _scratch() as folder, tempfile.TemporaryFile() as log:
            progress = Path(folder) / "progress"
            progress.write_bytes(_NOT_STARTED.to_bytes(8, "little"))
            inputs = (self._target.name, self._seed, first, count, seconds, progress, folder)
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.worker", *map(str, inputs)],
                stdout=subprocess.PIPE,
                stderr=log,
                check=False,
                env=os.environ | _ENVIRONMENT,
            )
            log.seek(0)
            errors = log.read().decode(errors="replace")
            index = int.from_bytes(progress.read_bytes(), "little")
        for line in done.stdout.splitlines():
            # The last line may be incomplete.
            if line.endswith(b"}"):
                self._take(json.loads(line))
        if done.returncode == 0:
            return first + count
        if index == _NOT_STARTED:
            raise RuntimeError(f"the target {self._target.name} cannot be opened: {errors}")
        self.deaths += 1
        self.executions += index - first + 1
        fault = _name_death(self._target, done.returncode, errors)
        death = Finding(index=index, fault=fault, place=fault, details=errors[-6000:])
        if done.returncode > 0 or not self._target.validated:
            self._note(death)
        else:
            # Report it: the fault may be ours and not a library's.
            self._on_finding(death, make_input(self._target, self._seed, index))
        return index + 1

    def _take(self, line: dict[str, Any]) -> None:
        if "index" in line:
            self._note(Finding(**line))
        else:
            self.executions += line["executions"]
            self.refused += line["refused"]
            self.grown_bytes = line["grown_bytes"]

    def _note(self, finding: Finding) -> None:
        if finding.place not in self.findings:
            self.findings[finding.place] = finding
            self._on_finding(finding, make_input(self._target, self._seed, finding.index))


def _name_death(target: Target, code: int, errors: str) -> str:
    if code > 0:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return f"the process ended with exit code {code}: {last[:300]}"
    died_of = signal.Signals(-code)
    if died_of is signal.SIGPROF:
        return f"it computed for more than {target.cpu_s:g} s"
    if died_of is signal.SIGALRM:
        return f"it took more than {target.wall_s:g} s"
    return f"the process died of {died_of.name}"


def _scratch() -> tempfile.TemporaryDirectory[str]:
    folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    return tempfile.TemporaryDirectory(dir=folder, prefix="embedgrpc-fuzz-")
