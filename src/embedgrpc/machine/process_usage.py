"""Reads what this process uses of the machine."""

import os
import resource
import time
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_STAT = Path("/proc/self/stat")
_DESCRIPTORS = Path("/proc/self/fd")
# The fields of `stat` after the name of the command: the 22nd of all is the start.
_START_FIELD = 19


def resident_bytes() -> int:
    """Return the memory that the process occupies; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def open_descriptors() -> int:
    """Return how many files, sockets and pipes are open; 0 where the system does not say."""
    try:
        # One of them is that of the folder itself.
        return max(len(os.listdir(_DESCRIPTORS)) - 1, 0)  # noqa: PTH208 - ten times as fast
    except OSError:
        return 0


def max_descriptors() -> int:
    """Return how many may be open; 0 for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft, 0)


def cpu_s() -> float:
    """Return the CPU time of all threads of the process, in seconds."""
    return time.process_time()


def started_at_s() -> float:
    """Return when the process was started, in seconds since 1970; 0 where that is unknown."""
    try:
        ticks = int(_STAT.read_text().rpartition(")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return 0.0
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
