"""Makes large responses off the event loop, one at a time.

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

# One thread for the process, as there is one lock: a second was no faster on two cores. It starts
# when it is first needed.
_POOL: Final = ThreadPoolExecutor(1, thread_name_prefix="pack")


async def pack_in_turn(pack: Callable[[], Packed]) -> Packed:
    """Make a response on another thread, after those that came before.

    Args:
        pack: Makes it. Not called if the task is cancelled before its turn.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_POOL, context.run, pack)
