"""Runs inputs of one target until it is done, or one of them ends the process.

python -m tests.fuzz.worker NAME SEED FIRST COUNT SECONDS PROGRESS SCRATCH

Before each input it writes its number to the file PROGRESS, so that the parent knows which input
ended the process. It writes a line of JSON for each finding.

The kernel enforces the limits of each input: it kills the process after the CPU time, also inside
of C code, and refuses memory above the limit.
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from tests.fuzz.catalog import find
from tests.fuzz.target import Refusals, Target

_FINDINGS_MAX = 200
# The number of inputs between two measurements of memory.
_MEASURE_EVERY = 64
_WARM_RUNS = 1000
# The content of the file PROGRESS.
_NUMBER = struct.Struct("<Q")


def make_input(target: Target, seed: int, index: int) -> bytes:
    """Return the input of a number; it is the same in every process."""
    return target.mutate(Random((seed << 48) + index))  # noqa: S311 - must be repeatable


def main() -> None:
    """Run the inputs that the command line names."""
    name, seed, first, count, seconds, progress_path, scratch = sys.argv[1:]
    target = find(name)
    with (
        Path(progress_path).open("r+b") as file,
        mmap.mmap(file.fileno(), _NUMBER.size) as progress,
        target.open(Path(scratch)) as execute,
    ):
        end = time.monotonic() + float(seconds)
        found = executions = warm_bytes = 0
        for index in range(int(first), int(first) + int(count)):
            _NUMBER.pack_into(progress, 0, index)
            content = make_input(target, int(seed), index)
            if executions % _MEASURE_EVERY == 0:
                if time.monotonic() > end or found >= _FINDINGS_MAX:
                    break
                size, resident = _read_memory()
            if executions == _WARM_RUNS:
                warm_bytes = resident
            if target.memory_bytes:
                _limit_memory(size + len(content) + target.memory_bytes)
            _limit_time(target.cpu_s, target.wall_s)
            try:
                execute(content)
            except BaseException as error:  # noqa: BLE001 - panics of libraries are BaseException
                _limit_memory(resource.RLIM_INFINITY)
                found += 1
                _write(_describe(index, error))
            _limit_memory(resource.RLIM_INFINITY)
            executions += 1
        _limit_time(0, 0)
        grown = max(0, _read_memory()[1] - warm_bytes) if warm_bytes else 0
        _write({"executions": executions, "refused": Refusals.count, "grown_bytes": grown})


def replay(target: Target, content: bytes) -> None:
    """Run one input in this process, without limits or handling of errors."""
    with tempfile.TemporaryDirectory() as scratch, target.open(Path(scratch)) as execute:
        execute(content)


def _describe(index: int, error: BaseException) -> dict[str, object]:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/fuzz/worker" not in frame.filename]
    last = (ours or frames)[-1]
    text = " ".join(str(error).split())[:300]
    return {
        "index": index,
        "fault": f"{type(error).__name__}: {text}",
        "place": f"{type(error).__name__} at {last.filename}:{last.lineno}",
        "details": "".join(traceback.format_exception(error, limit=-20))[-6000:],
    }


def _write(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _read_memory() -> tuple[int, int]:
    """Return the bytes of the address space, and of resident memory."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * mmap.PAGESIZE, int(resident) * mmap.PAGESIZE


def _limit_memory(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def _limit_time(cpu_s: float, wall_s: float) -> None:
    # Without a handler, the kernel kills the process, also while it runs C code.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
