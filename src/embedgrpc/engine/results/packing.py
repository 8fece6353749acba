"""Makes large responses off the event loop, few at a time.

Writing numbers and copying rows hold the interpreter lock. If many threads did so at once, the
event loop, which gets the lock in turn with them, would wait for all of them several times in each
short call.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Packed = TypeVar("Packed")

# More would not be faster. The second one goes on while the first is in numpy, without the lock.
_THREADS: Final = 1
# One for the process, as the lock is. Its threads start when they are first needed.
_POOL: Final = ThreadPoolExecutor(_THREADS, thread_name_prefix="pack")


async def pack_in_turn(pack: Callable[[], Packed]) -> Packed:
    """Make a response on another thread, after those that came before.

    Args:
        pack: Makes it. Not called if the task is cancelled before its turn.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_POOL, context.run, pack)
