"""Watches how long the turns of a server's event loop take."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from embedgrpc.server.settings.settings import Settings
from tests.server.service import PATIENCE_S, Client

TURN_MS_MAX = 5.0
TRIES = 6


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
        for _ in range(TRIES):
            await self.ask("forget")
            await work()
            best = min(best, await self.ask("longest"))
            if best < TURN_MS_MAX:
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
