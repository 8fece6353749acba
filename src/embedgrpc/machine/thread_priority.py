"""Lowers the priority of threads that compute, below those that serve the network.

Models keep every core busy as long as there is work. Reading, answering or refusing a call takes a
fraction of a millisecond, but at equal priority it would wait for its turn like a batch.
"""

import os
import sys
import threading

from embedgrpc.machine.cores import has_quota

# A thread of normal priority gets about nine times the CPU time of one with this niceness. With
# more, threads that compute are suspended while they hold the interpreter lock, and so all others.
_NICENESS = 10
# A thread of _NICENESS gets seven times the CPU time of one with this. The policy SCHED_IDLE makes
# calls hardly faster, and a busy program beside the server would all but stop bulk work then.
_NICENESS_GIVING_WAY = 19


def lower_priority() -> None:
    """Lower the priority of the calling thread for good; threads that it starts inherit it.

    Only on Linux, where threads have priorities of their own.
    """
    _set_niceness(_NICENESS)


def can_give_way() -> bool:
    """Return whether threads can give way to others: on Linux, without a CPU quota.

    What gives way uses up a quota like all else, and then the whole process has to stand still.
    """
    return sys.platform == "linux" and not has_quota()


def give_way() -> None:
    """Let the calling thread run where hardly any other thread needs the core, for good.

    It must not hold a lock for long, the interpreter's included: who waits for it would wait for
    all others, too. Only on Linux.
    """
    _set_niceness(_NICENESS_GIVING_WAY)


def _set_niceness(niceness: int) -> None:
    """Raise the niceness of the calling thread to at least this, on Linux."""
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
