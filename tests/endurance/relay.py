"""A connection that can be cut, as a cable can, with calls on it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65_536


class Relay:
    """Passes bytes between clients and a server until it is cut.

    Attributes:
        address: Where clients connect.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Abort every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        host, _, port = self._target.rpartition(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, server_writer]
        await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def relaying(target: str) -> AsyncIterator[Relay]:
    """Relay to a server, HOST:PORT, until the block ends; then cut all connections."""
    relay = Relay(target)
    listener = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    async with listener:
        relay.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield relay
        finally:
            relay.cut()
