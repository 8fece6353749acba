"""Finds how much memory this process may use."""

import os
from pathlib import Path

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_memory_bytes(limits: tuple[Path, ...] = _CGROUP_LIMITS) -> int:
    """The memory of this machine, or of the container where that has less.

    Args:
        limits: Files in which the kernel tells the limit of the control group.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)
