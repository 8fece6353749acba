"""Watches how long the turns of a server's event loop take."""

import asyncio
import mmap
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

from embedgrpc.server.settings.settings import Settings
from tests.server.service import PATIENCE_S, Client

TRIES = 12
# Where the memory is slow, most tries with a response of some MiB take longer.
_WORK_TRIES = 40
_TURN_MS_MAX = 5.0
# A message of the largest size, with the characters that take longest.
_WIDE_TEXT = ("\U0001f600" * 1024 * 1024).encode()
_DECODED_MAX = 2.5


@cache
def turn_ms_max() -> float:
    """Return how long a turn may take, in ms of CPU time.

    That is 5 ms. A machine on which the text of the largest message alone takes most of that has
    2.5 times as long as it takes to decode this text.
    """
    shortest_ms = float("inf")
    for _ in range(2 * TRIES):
        began = time.thread_time()
        _WIDE_TEXT.decode()
        shortest_ms = min(shortest_ms, (time.thread_time() - began) * 1e3)
    return max(_TURN_MS_MAX, _DECODED_MAX * shortest_ms)


def copying_ms_min(size_bytes: int) -> float:
    """Return how long it takes to copy so many bytes into fresh memory, in ms of CPU time."""
    values = bytes(size_bytes)
    shortest_ms = float("inf")
    for _ in range(TRIES):
        began = time.thread_time()
        with mmap.mmap(-1, size_bytes) as fresh:
            fresh[:] = values
            shortest_ms = min(shortest_ms, (time.thread_time() - began) * 1e3)
    return shortest_ms


class Watched:
    """A server that reports how long the turns of its loop take.

    Attributes:
        client: A connection to it.
        http_address: Where it serves HTTP; may be empty.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, client: Client, http_address: str
    ) -> None:
        self.client = client
        self.http_address = http_address
        self._process = process

    async def ask(self, command: str) -> float:
        """Send a command; return the longest turn in ms."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n".encode())
        return float(await self._process.stdout.readline())

    async def shortest(self, work: Callable[[], Awaitable[None]]) -> float:
        """Do some work several times; return the longest turn, in ms, of the best try."""
        best = float("inf")
        for _ in range(_WORK_TRIES):
            await self.ask("forget")
            await work()
            best = min(best, await self.ask("longest"))
            if best < turn_ms_max():
                break
        return best


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watched]:
    """Run a server in its own process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.watched_server", settings.model_dump_json()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S * 3):
            address, _, http_address = (await process.stdout.readline()).decode().partition(" ")
        client = Client(address, grpc__max_receive_message_length=-1)
        async with client.channel:
            yield Watched(process, client, http_address.strip())
    finally:
        process.kill()
        await process.communicate()
