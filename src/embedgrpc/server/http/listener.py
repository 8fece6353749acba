"""The HTTP port: sockets, and the limits on connections that aiohttp leaves open."""

import asyncio
import contextlib
import time
from pathlib import Path

from aiohttp import web

from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.connections.activity import ConnectionActivity
from embedgrpc.server.connections.keeper import ConnectionKeeper, Limits
from embedgrpc.server.connections.listening import bind_sockets
from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.door import HttpDoor
from embedgrpc.server.http.exchange import Served
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.health import HealthService
from embedgrpc.server.settings.settings import Settings

# As long as OpenAI's and httpx's clients keep an idle connection at the most, and some more.
_KEEP_ALIVE_S = 75.0
_REAP_INTERVAL_S = 1.0
# Headers, in bytes: of one line, and of all lines.
_LINE_BYTES_MAX = 8190
# Requests of one connection that wait for its first one.
_BACKLOG = 512


class HttpListener:
    """Serves the HTTP port.

    Args:
        catalog: The models.
        settings: The settings.
        health: The health of the services.
        calls: The registry of all calls.
        limits: How many connections there may be.

    Attributes:
        address: Where it listens; with the port that was chosen for port 0.
        keeper: Limits its connections; the owner runs it once it listens.
    """

    keeper: ConnectionKeeper

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        health: HealthService,
        calls: OpenCalls,
        *,
        limits: Limits,
    ) -> None:
        self.address = settings.http_address
        self._settings = settings
        self._limits = limits
        self._activity = ConnectionActivity(max_peers=2 * limits.backstop(settings.http_address))
        served = Served(catalog, settings, health, started_at=int(time.time()))
        self._door = HttpDoor(served, all_routes(), calls, self._activity)
        self._server = web.Server(
            self._door.answer,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=min(_KEEP_ALIVE_S, settings.max_connection_idle_s),
            auto_decompress=False,
            lingering_time=0,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
        )
        self._runner = web.ServerRunner(
            self._server,
            handle_signals=False,
            shutdown_timeout=settings.shutdown_grace_s,
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            StartError: The address cannot be bound.
        """
        sockets, self.address = bind_sockets(
            self.address, unix_socket_mode=self._settings.unix_socket_mode, flag="--http-address"
        )
        await self._runner.setup()
        for one in sockets:
            await web.SockSite(self._runner, one, backlog=_BACKLOG).start()
        self.keeper = ConnectionKeeper("http", self.address, self._activity.of, self._limits)

    async def stop(self) -> None:
        """Refuse new connections, and end when the calls in flight are answered."""
        self.drain()
        await self._runner.cleanup()
        if self.address.startswith("unix:"):
            await asyncio.to_thread(_remove, self.address)

    def drain(self) -> None:
        """Close each connection after its next answer, so that clients go elsewhere."""
        self._door.draining = True

    async def reap(self) -> None:
        """Close connections that have sent no whole request for too long, until cancelled.

        aiohttp waits for the first request of a connection forever, however slowly it comes.
        """
        patience_s = self._settings.max_receive_s
        # The time at which each connection without a request was first seen.
        silent: dict[web.RequestHandler, float] = {}
        while True:
            await asyncio.sleep(_REAP_INTERVAL_S)
            now = time.monotonic()
            connections = self._server.connections
            self._door.used.intersection_update(connections)
            excess = len(connections) - self._limits.busy
            # The keep-alive timer watches a connection from its first request on.
            waiting = [one for one in connections if one not in self._door.used and one.transport]
            silent = {one: silent.get(one, now) for one in waiting}
            for connection, since in silent.items():
                if now - since > patience_s or excess > 0:
                    excess -= 1
                    _abort(connection)


def _remove(address: str) -> None:
    with contextlib.suppress(OSError):
        Path(address.removeprefix("unix:")).unlink()


def _abort(connection: web.RequestHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()
