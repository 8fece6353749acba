"""Makes threads that compute give way to those that wait for the network.

Models keep every core busy for as long as there is work. What reads calls, answers them or refuses
them needs a core for a fraction of a millisecond, and would wait for its turn as long as any other.
"""

import os
import sys
import threading

# A thread of the usual priority gets about nine times the share of one with this. Beyond it,
# threads that compute are held up with the interpreter's lock in their hands, and all others, too.
_NICENESS = 10


def give_way() -> None:
    """Lowers the priority of the calling thread, for good; threads that it starts inherit it.

    On Linux, where priorities are those of threads; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
