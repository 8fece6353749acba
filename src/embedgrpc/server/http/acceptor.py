"""Accepts connections, a few in each turn of the event loop.

The loop's own way accepts all that wait, hundreds in a flood, and makes a handler for each before
anything else runs.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import struct
from typing import Final, cast

from aiohttp import web

from embedgrpc.server.connections.connection_table import address_of
from embedgrpc.server.http.connection import ConnectionServer
from embedgrpc.server.http.pace import cost_s
from embedgrpc.server.http.peers import name_of

_logger = logging.getLogger(__name__)

# Each takes about 0.1 ms, or 0.02 ms if it is refused.
_ACCEPTED_AT_ONCE: Final = 8
# Connections that wait to be accepted.
_BACKLOG: Final = 512
# As long as gRPC gives a handshake.
_HANDSHAKE_S: Final = 10.0
# How long a client has to confirm the end of its connection.
_GOODBYE_S: Final = 1.0
# After the system has refused a connection, for lack of descriptors or memory.
_PAUSE_S: Final = 0.5
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What a handshake takes that fails after the certificate was sent, in bytes of a bad head.
_HANDSHAKE_BYTES: Final = 64 * 1024
# Closes a connection at once, without what TCP does at the end of others.
_RESET: Final = struct.pack("ii", 1, 0)


class Acceptor:
    """Accepts the connections of one socket.

    Args:
        listening: The socket, bound.
        server: Makes the connections.
        tls: For TLS; None without.
    """

    def __init__(
        self, listening: socket.socket, server: ConnectionServer, tls: ssl.SSLContext | None
    ) -> None:
        self._socket = listening
        self._server = server
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Listen."""
        self._socket.setblocking(False)
        self._socket.listen(_BACKLOG)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more connections."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, place = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._rest(error)
                return
            address = address_of(name_of(place))
            if not self._server.has_room(address, connecting=len(self._connecting)):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            client.setblocking(False)
            task = self._loop.create_task(self._connect(client, address))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _rest(self, error: OSError) -> None:
        """Stop accepting for a moment: the socket would stay readable, and this never end."""
        _logger.warning("no connection can be accepted", extra={"problem": error.strerror})
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(
            _PAUSE_S, self._loop.add_reader, self._socket.fileno(), self._accept
        )

    async def _connect(self, client: socket.socket, address: str) -> None:
        limits = {}
        if self._tls is not None:
            limits = {"ssl_handshake_timeout": _HANDSHAKE_S, "ssl_shutdown_timeout": _GOODBYE_S}
        try:
            await self._loop.connect_accepted_socket(self._server, client, ssl=self._tls, **limits)
        except (OSError, TimeoutError):
            # The client has left, or speaks no TLS; SSLError is an OSError.
            with contextlib.suppress(OSError):
                client.close()
            if self._tls is not None:
                self._server.pace.charge(address, cost_s(head_bytes=_HANDSHAKE_BYTES))


class AcceptorSite(web.SockSite):
    """A socket of the listener whose connections an `Acceptor` accepts."""

    async def start(self) -> None:
        """Listen."""
        await web.BaseSite.start(self)
        server = self._runner.server
        if not isinstance(server, ConnectionServer):
            raise TypeError("an acceptor makes the connections of a ConnectionServer")
        acceptor = Acceptor(self._sock, server, self._ssl_context)
        acceptor.start()
        # All that aiohttp does with it is to close it.
        self._server = cast("asyncio.AbstractServer", acceptor)
