"""Counts the cores that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Where version 1 of control groups is mounted.
_CPU_CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def available_cores(
    *, cpus: Path = _CPUS, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP
) -> int:
    """Return the number of physical cores, within the process's affinity and CPU quota.

    The two threads of one core share the units that multiply matrices, so a second thread there
    adds nothing.

    Args:
        cpus: Where the kernel describes the processors.
        cgroups: Where control groups are mounted, of either version.
        membership: Where the kernel lists the groups of the process.

    Returns:
        At least 1.
    """
    cores = len(processors_by_core(cpus=cpus)) or os.cpu_count() or 1
    return max(1, min([cores, *_quotas(cgroups, membership)]))


def has_quota(
    *, cpus: Path = _CPUS, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP
) -> bool:
    """Return whether a CPU quota leaves less than all cores within the process's affinity.

    Args:
        cpus: See `available_cores`.
        cgroups: See `available_cores`.
        membership: See `available_cores`.
    """
    cores = len(processors_by_core(cpus=cpus)) or os.cpu_count() or 1
    return available_cores(cpus=cpus, cgroups=cgroups, membership=membership) < cores


def processors_by_core(*, cpus: Path = _CPUS) -> list[frozenset[int]]:
    """Return the processors of each physical core, within the process's affinity.

    Args:
        cpus: Where the kernel describes the processors.

    Returns:
        A set for each core; none where the system does not tell.
    """
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return []
    cores: dict[str, set[int]] = {}
    for processor in sorted(processors):
        siblings = _siblings(cpus / f"cpu{processor}") or str(processor)
        cores.setdefault(siblings, set()).add(processor)
    return [frozenset(one) for one in cores.values()]


def _siblings(cpu: Path) -> str:
    try:
        return (cpu / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return ""


def _quotas(cgroups: Path, membership: Path) -> Iterator[int]:
    """Return the quota of each control group above the process, in cores, rounded up."""
    groups = _groups(membership)
    for mount in (cgroups, *(cgroups / name for name in _CPU_CONTROLLERS)):
        for group in groups:
            # Parents have quotas, too. In a container, the path may be that on the host, while
            # only its last group is mounted, at the root.
            for folder in (group, *group.parents):
                quota = _read_quota(mount / folder.relative_to("/"))
                if quota:
                    yield quota


def _groups(membership: Path) -> set[PurePosixPath]:
    """Return the control groups of the process, as paths from where they are mounted."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    # HIERARCHY:CONTROLLERS:PATH, where version 2 has no controllers.
    parts = [line.split(":", 2) for line in lines]
    named = {part[2] for part in parts if len(part) == 3 and part[1] in ("", *_CPU_CONTROLLERS)}  # noqa: PLR2004 - see above
    return {PurePosixPath(path) for path in named if path.startswith("/")} | {PurePosixPath("/")}


def _read_quota(folder: Path) -> int:
    """Return the quota of a control group in cores, rounded up; 0 for no limit."""
    try:
        if (folder / "cpu.max").exists():
            allowed, period = (folder / "cpu.max").read_text().split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # "max" and -1 are no limit.
        return max(0, math.ceil(int(allowed) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return 0
