"""Lowers the priority of threads that compute, below those that serve the network.

Models keep every core busy as long as there is work. Reading, answering or refusing a call takes a
fraction of a millisecond, but at equal priority it would wait for its turn like a batch.
"""

import os
import sys
import threading
from contextlib import suppress

# A thread of normal priority gets about nine times the CPU time of one with this niceness. With
# more, threads that compute are suspended while they hold the interpreter lock, and so all others.
_NICENESS = 10


def lower_priority() -> None:
    """Lower the priority of the calling thread for good; threads that it starts inherit it.

    Only on Linux, where threads have priorities of their own.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)


def can_give_way() -> bool:
    """Return whether threads can give way to others on this system: on Linux."""
    return sys.platform == "linux"


def give_way() -> None:
    """Let the calling thread run where no other thread needs the core, for good.

    It leaves its core at once to a thread that wakes, which may else wait for several milliseconds.
    It must not hold a lock for long, the interpreter's included: who waits for it would wait for
    all others, too. Where the system refuses this, the thread gets lower priority.
    """
    lower_priority()
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
