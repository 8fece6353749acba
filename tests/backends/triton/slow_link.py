"""A proxy that delays a connection to a server."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def slow_link(address: str, *, delay_s: float) -> AsyncIterator[str]:
    """Forward connections, and bytes after a delay; yield the address to connect to."""
    host, _, port = address.rpartition(":")
    links: list[asyncio.Task[None]] = []

    async def pass_on(source: StreamReader, sink: StreamWriter) -> None:
        while data := await source.read(65536):
            await asyncio.sleep(delay_s)
            sink.write(data)

    async def link(near_in: StreamReader, near_out: StreamWriter) -> None:
        far_in, far_out = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(pass_on(near_in, far_out), pass_on(far_in, near_out))
        finally:
            for end in (near_out, far_out):
                end.close()
                await end.wait_closed()

    def accept(near_in: StreamReader, near_out: StreamWriter) -> None:
        links.append(asyncio.create_task(link(near_in, near_out)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in links:
        task.cancel()
    await asyncio.gather(*links, return_exceptions=True)
