"""A connection that can be cut, as a cable can, with calls on it."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65_536


class Relay:
    """Pass bytes on between clients and a server until it is cut.

    Args:
        target: HOST:PORT of the server.
        cut_after_bytes: Cut by itself, once, when the server has sent so many bytes.

    Attributes:
        address: Where clients connect.
    """

    def __init__(self, target: str, *, cut_after_bytes: float = math.inf) -> None:
        self.address = ""
        self._target = target
        self._bytes_left = cut_after_bytes
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """End every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        host, _, port = self._target.rpartition(":")
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()  # the server is away: as if it had refused
            return
        self._writers += [writer, server_writer]
        await asyncio.gather(
            _pass_on(reader, server_writer),
            _pass_on(server_reader, writer, on_bytes=self._count),
        )

    def _count(self, size: int) -> None:
        """Count bytes of the server, and cut when there were enough."""
        self._bytes_left -= size
        if self._bytes_left <= 0:
            self._bytes_left = math.inf
            self.cut()


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
            on_bytes(len(chunk))
    writer.close()


@asynccontextmanager
async def relaying(target: str, *, cut_after_bytes: float = math.inf) -> AsyncIterator[Relay]:
    """Relay to a server, HOST:PORT, until the block ends; then everything is cut."""
    relay = Relay(target, cut_after_bytes=cut_after_bytes)
    listener = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    async with listener:
        relay.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield relay
        finally:
            relay.cut()
