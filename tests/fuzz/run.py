"""Runs a target in processes of its own and gathers what they die of."""

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

# After so many different findings there is enough to do.
_PLACES_MAX = 20
# And after so many inputs that ended a process, each of which took a start.
_DEATHS_MAX = 50
_ENVIRONMENT = {
    # So that address space tells how much memory is used.
    "MALLOC_ARENA_MAX": "1",
    # So that an input's time is its own.
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    # Symbols of a panic take more memory than an input may.
    "RUST_BACKTRACE": "0",
}
_NOT_STARTED = (1 << 64) - 1
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it


def fuzz(
    target: Target,
    *,
    runs: int,
    seconds: float,
    seed: int,
    first: int = 0,
    tell: Callable[[Finding, bytes], None] = lambda _finding, _content: None,
) -> Report:
    """Runs mutated inputs.

    Args:
        target: What to fuzz.
        runs: How many inputs at most.
        seconds: How long at most.
        seed: Which inputs: the same ones for the same seed.
        first: The number of the first.
        tell: Takes each finding at a new place, with its input.

    Returns:
        What came of it.
    """
    began = time.monotonic()
    findings: dict[str, Finding] = {}
    executions = refused = grown_bytes = deaths = 0

    def note(finding: Finding) -> None:
        if finding.place not in findings:
            findings[finding.place] = finding
            tell(finding, make_input(target, seed, finding.index))

    end = first + runs
    with _scratch() as folder:
        progress = Path(folder) / "progress"
        while first < end and len(findings) < _PLACES_MAX:
            if deaths >= _DEATHS_MAX and not target.vetted:
                break
            left_s = seconds - (time.monotonic() - began)
            if left_s <= 0:
                break
            progress.write_bytes(_NOT_STARTED.to_bytes(8, "little"))
            lines, code, errors = _work(target, seed, first, end - first, left_s, progress)
            for line in lines:
                if "index" in line:
                    note(Finding(**line))
                else:
                    executions += line["executions"]
                    refused += line["refused"]
                    grown_bytes = line["grown_bytes"]
            if code == 0:
                break
            index = int.from_bytes(progress.read_bytes(), "little")
            if index == _NOT_STARTED:
                raise RuntimeError(f"the target {target.name} cannot be opened: {errors}")
            deaths += 1
            executions += index - first + 1
            fault = _name_death(target, code, errors)
            if code > 0 or not target.vetted:
                note(Finding(index=index, fault=fault, place=fault, details=errors[-6000:]))
            first = index + 1
    return Report(
        executions=executions,
        refused=refused,
        deaths=deaths,
        findings=tuple(findings.values()),
        seconds=time.monotonic() - began,
        grown_bytes=grown_bytes,
    )


def _work(
    target: Target, seed: int, first: int, count: int, seconds: float, progress: Path
) -> tuple[list[dict[str, Any]], int, str]:
    """Runs one process; returns its lines, its exit code and what it wrote to its log."""
    with _scratch() as scratch, tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.worker", target.name, str(seed)),
                *(str(first), str(count), str(seconds), str(progress), scratch),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            check=False,
            env=os.environ | _ENVIRONMENT,
        )
        log.seek(0)
        errors = log.read().decode(errors="replace")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith(b"}")]
    return lines, done.returncode, errors


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
