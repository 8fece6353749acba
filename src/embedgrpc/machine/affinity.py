"""Keeps threads that share a batch on cores of their own.

The kernel often puts a thread that wakes beside the one that woke it, even where another core is
idle. Two threads that share a batch of one text then take turns on one core, and the batch takes
nearly twice as long.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from embedgrpc.machine.cores import available_cores, processors_by_core


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
