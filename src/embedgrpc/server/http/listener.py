"""The HTTP port: sockets, and the limits on connections that aiohttp leaves open."""

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from embedgrpc.machine.malloc import trim_memory
from embedgrpc.server.calls.graceful_stop import HOLD_S_MAX, QUIET_S
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.connections.activity import ConnectionActivity
from embedgrpc.server.connections.keeper import ConnectionKeeper, Limits
from embedgrpc.server.connections.listening import bind_sockets
from embedgrpc.server.http.acceptor import AcceptorSite
from embedgrpc.server.http.call import HttpCall
from embedgrpc.server.http.connection import Connection, ConnectionServer
from embedgrpc.server.http.door import HttpDoor
from embedgrpc.server.http.exchange import Served
from embedgrpc.server.http.pace import Pace
from embedgrpc.server.http.routing import Routes
from embedgrpc.server.telemetry.http_tracing import HttpTracer

# As long as OpenAI's and httpx's clients keep an idle connection at the most, and some more.
_KEEP_ALIVE_S = 75.0
_REAP_INTERVAL_S = 1.0
_STEP_S = 0.01
_SETTLE_S = 0.3
# After so many malformed requests, free memory is returned to the system.
_REFUSALS_MAX = 50
# Headers, in bytes: of one line, and of all lines.
_LINE_BYTES_MAX = 8190
# For the calls that the grace did not suffice for: aiohttp waits this long, twice.
_CLEANUP_S = 0.05
# Of a body that waits for room, aiohttp buffers twice this, and one read of up to 256 KiB.
_READ_BUFFER_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a listener listens, and what it serves.

    Attributes:
        name: Its name in metrics and logs.
        address: HOST:PORT or unix:PATH.
        flag: The flag that sets the address, for errors.
        routes: What it serves.
    """

    name: str
    address: str
    flag: str
    routes: Routes


class HttpListener:
    """Serves an HTTP port.

    Args:
        listening: Where, and what.
        served: The server.
        calls: The registry of its calls.
        limits: How many connections there may be.
        tracer: Traces calls; None where nothing is exported.
        tls: For HTTPS; a Unix socket has none.

    Attributes:
        address: Where it listens; with the port that was chosen for port 0.
        keeper: Limits its connections; the owner runs it once it listens.
    """

    keeper: ConnectionKeeper

    def __init__(
        self,
        listening: Listening,
        served: Served,
        calls: OpenCalls,
        *,
        limits: Limits,
        tracer: HttpTracer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address = listening.address
        self._listening = listening
        self._tls = None if self.address.startswith("unix:") else tls
        self._settings = settings = served.settings
        self._limits = limits
        self._calls = calls
        self._activity = ConnectionActivity(max_peers=2 * limits.backstop(address))
        self._pace = Pace()
        self._door = HttpDoor(
            served, listening.routes, calls, self._activity, tracer=tracer, pace=self._pace
        )
        self._server = ConnectionServer(
            self._door.answer,
            connections=limits.total,
            pace=self._pace,
            connections_max=limits.backstop(address),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=min(_KEEP_ALIVE_S, settings.max_connection_idle_s),
            auto_decompress=False,
            lingering_time=0,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
        )
        self._runner = web.ServerRunner(
            self._server,
            handle_signals=False,
            shutdown_timeout=_CLEANUP_S,
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            StartError: The address cannot be bound.
        """
        sockets, self.address = bind_sockets(
            self.address,
            unix_socket_mode=self._settings.unix_socket_mode,
            flag=self._listening.flag,
        )
        await self._runner.setup()
        for one in sockets:
            await AcceptorSite(self._runner, one, ssl_context=self._tls).start()
        self.keeper = ConnectionKeeper(
            self._listening.name, self.address, self._activity.of, self._limits
        )

    async def stop(self) -> None:
        """Refuse new connections, and end when the calls in flight are answered, or too late."""
        # The system resets connections that are not accepted yet. So clients keep theirs for a
        # moment, and open few new ones.
        self._door.draining = False
        await asyncio.sleep(_SETTLE_S)
        for site in self._runner.sites:
            await site.stop()
        self.drain()
        # Requests may be on their way on connections that are kept alive, which are closed now.
        await self._wait_until_quiet()
        self._server.pre_shutdown()
        if calls := [task for task, call in self._calls.by_task() if isinstance(call, HttpCall)]:
            await asyncio.wait(calls, timeout=self._settings.shutdown_grace_s)
        await self.close()

    async def close(self) -> None:
        """End at once, where no call needs to be awaited."""
        await self._runner.cleanup()
        if self.address.startswith("unix:"):
            await asyncio.to_thread(_remove, self.address)

    async def _wait_until_quiet(self) -> None:
        """Wait until no request has come for a while; the answer to each closes its connection."""
        ends_at = time.monotonic() + HOLD_S_MAX
        arrivals, quiet_since = self._server.requests_count, time.monotonic()
        while (now := time.monotonic()) < min(ends_at, quiet_since + QUIET_S):
            await asyncio.sleep(_STEP_S)
            if self._server.requests_count != arrivals:
                arrivals, quiet_since = self._server.requests_count, now

    def drain(self) -> None:
        """Close each connection after its next answer, so that clients go elsewhere."""
        self._pace.stop()
        self._door.draining = True

    async def reap(self) -> None:
        """Close connections that take too long to send the head of a request, until cancelled.

        aiohttp waits for the first request of a connection forever, however slowly it comes.
        """
        patience_s = self._settings.max_receive_s
        # Where the keeper sees no connections, this is all that closes those that are idle.
        most = self._limits.busy if self.keeper.can_check else self._limits.total
        # The time at which each of those that are closed, but not yet gone, was first seen.
        leaving: dict[Connection, float] = {}
        while True:
            await asyncio.sleep(_REAP_INTERVAL_S)
            now = time.monotonic()
            connections = [one for one in self._server.connections if isinstance(one, Connection)]
            leaving = {one: leaving.get(one, now) for one in connections if one.is_leaving}
            late = {one for one, since in leaving.items() if now - since > patience_s}
            # aiohttp's timer closes only those that send nothing after an answer.
            late |= {one for one in connections if now - one.waits_since() > patience_s}
            excess = len(connections) - most
            if excess > 0:
                idle = sorted((one for one in connections if one.idle_since <= now), key=_idlest)
                late.update(idle[:excess])
            for one in late:
                one.abort()
            if self._server.refusals > _REFUSALS_MAX:
                # malloc keeps what their heads, of half a megabyte each, took.
                self._server.refusals = 0
                await asyncio.to_thread(trim_memory)


def _idlest(connection: Connection) -> tuple[bool, float]:
    """Return what sorts connections; those that never made a request go first."""
    return connection.requests > 0, connection.idle_since


def _remove(address: str) -> None:
    with contextlib.suppress(OSError):
        Path(address.removeprefix("unix:")).unlink()
