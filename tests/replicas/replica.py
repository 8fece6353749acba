"""A server that is stopped, or killed, and started again at its address."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.envoy.proxy import free_ports
from tests.server.server_process import Process, started

PATIENCE_S = 120.0


class Replica:
    """One of several servers with the same models."""

    def __init__(self, cache_dir: Path, flags: tuple[str, ...]) -> None:
        self._cache_dir = cache_dir
        self._flags = flags
        self._stack = AsyncExitStack()
        self._process: Process | None = None
        port, self._metrics_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"

    async def start(self) -> None:
        """Start it; return once its model serves."""
        metrics = ("--metrics-address", f"127.0.0.1:{self._metrics_port}")
        context = started(*self._flags, *metrics, cache_dir=self._cache_dir, address=self.address)
        self._process = await self._stack.enter_async_context(context)
        await self._process.until("model ready")

    async def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        assert self._process is not None
        self._process.signal(signal.SIGTERM)
        return await self._process.ended()

    async def reload(self) -> None:
        """Send SIGHUP; return once the settings are applied."""
        assert self._process is not None
        done = len(self._process.events("reloaded"))
        self._process.signal(signal.SIGHUP)
        await self._process.until("reloaded", times=done + 1)

    async def kill(self) -> None:
        """End it at once, with all that it does."""
        assert self._process is not None
        self._process.signal(signal.SIGKILL)
        await self._process.ended()

    async def until_connected(self) -> None:
        """Wait until a client is connected to it: one that lost it tries again after a while."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._count_connections():  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)

    async def _count_connections(self) -> float:
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            families = text_string_to_metric_families(await response.text())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "embedgrpc_connections_open" and sample.labels["listener"] == "calls"
        )

    async def close(self) -> None:
        """End what still runs."""
        await self._stack.aclose()


@asynccontextmanager
async def running(count: int, cache_dir: Path, *flags: str) -> AsyncIterator[list[Replica]]:
    """Run several replicas until the block ends."""
    replicas = [Replica(cache_dir, flags) for _ in range(count)]
    try:
        await replicas[0].start()  # it builds the graphs that the others find
        await asyncio.gather(*(one.start() for one in replicas[1:]))
        yield replicas
    finally:
        for replica in replicas:
            await replica.close()
