"""Lowers the priority of threads that compute, below those that serve the network.

Models keep every core busy as long as there is work. Reading, answering or refusing a call takes a
fraction of a millisecond, but at equal priority it would wait for its turn like a batch.
"""

import os
import sys
import threading

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
