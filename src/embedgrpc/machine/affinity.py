"""Keeps threads that share a batch on cores of their own.

The kernel often puts a thread that wakes beside the one that woke it, even where another core is
idle. Two threads that share a batch of one text then take turns on one core, and the batch takes
nearly twice as long.
"""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from embedgrpc.machine.cores import available_cores, processors_by_core

# How long threads that were started may take to move to their cores.
_MOVE_S_MAX = 1.0
_MOVE_PAUSE_S = 0.001


def core_of_each_thread(threads: int) -> Sequence[frozenset[int]]:
    """Return the processors of a core for each of some threads.

    Args:
        threads: The number of threads that share a batch, the caller of the run included.

    Returns:
        One set for each thread. None at all unless there is one thread for each core: with a CPU
        quota the cores belong to other processes, too, which would choose the same ones.
    """
    cores = processors_by_core()
    return cores if len(cores) == available_cores() == threads else []


class PinnedThreads:
    """Threads that have been started on cores of their own, and may be let go from there.

    Not for several threads at once.

    Args:
        cores: By the id of a thread, the processors of its core.
    """

    def __init__(self, cores: Mapping[int, frozenset[int]]) -> None:
        self._cores = cores
        self._are_pinned = True

    def pin(self, *, pinned: bool) -> None:
        """Keep the threads on their cores, or let them run wherever the calling thread may."""
        if pinned == self._are_pinned or not self._cores:
            return
        self._are_pinned = pinned
        everywhere = os.sched_getaffinity(0)
        for thread, core in self._cores.items():
            with suppress(OSError):
                os.sched_setaffinity(thread, core if pinned else everywhere)


def threads_on(cores: Collection[frozenset[int]], *, but: Collection[int]) -> PinnedThreads:
    """Return the threads of this process that are on one of some cores, one for each.

    Threads move there by themselves, some time after they were started. This waits for them.

    Args:
        cores: The processors of each core.
        but: The ids of threads that are left out.
    """
    until = time.monotonic() + _MOVE_S_MAX
    while True:
        found = {}
        for thread in thread_ids() - set(but):
            with suppress(OSError):
                core = frozenset(os.sched_getaffinity(thread))
                if core in cores:
                    found[thread] = core
        if len(found) >= len(cores) or time.monotonic() >= until:
            return PinnedThreads(found)
        time.sleep(_MOVE_PAUSE_S)


def thread_ids() -> set[int]:
    """Return the ids of all threads of this process; none where the system does not tell."""
    with suppress(OSError):
        return {int(one.name) for one in Path("/proc/self/task").iterdir()}
    return set()


@contextmanager
def running_on(processors: frozenset[int]) -> Iterator[None]:
    """Keep the calling thread on some processors inside the `with` block.

    Args:
        processors: The processors; none, or processors that this process may no longer use, leave
            the thread where it is.
    """
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)
