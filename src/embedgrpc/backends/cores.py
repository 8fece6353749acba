"""Counts the cores that this process may compute on."""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(*, cpus: Path = _CPUS, quota: Path = _CGROUP_QUOTA) -> int:
    """Counts physical cores, within the process's affinity and its control group's quota.

    The two threads of one core share the units that matrices are multiplied on, so a second
    thread there adds nothing.

    Args:
        cpus: Where the kernel describes the processors.
        quota: Where it tells the quota of the control group.

    Returns:
        At least 1.
    """
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
    cores = {_siblings(cpus / f"cpu{processor}") or str(processor) for processor in processors}
    return max(1, min(len(cores), _quota(quota)))


def _siblings(cpu: Path) -> str:
    try:
        return (cpu / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return ""


def _quota(path: Path) -> int:
    try:
        allowed, period = path.read_text().split()
        return math.ceil(int(allowed) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return os.cpu_count() or 1
