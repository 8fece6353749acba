"""A listener that serves only health, for probes.

A probe that connects to the main listener shares its limits. When clients use those up, the probe
fails, and the process is restarted for all clients.
"""

from typing import Self

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.server.calls.error_interceptor import ErrorInterceptor
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.connections.activity import Activity
from embedgrpc.server.connections.keeper import ConnectionKeeper, Limits
from embedgrpc.server.connections.listening import (
    HEALTH_MESSAGE_BYTES,
    health_channel_arguments,
    listen,
)
from embedgrpc.server.services.health import HealthService
from embedgrpc.server.settings.settings import Settings

# Probes are few; this limits what a flood of connections may take.
_LIMITS = Limits(total=64)

# A health check has one field; newer clients may add a few.
_FIELDS_MAX = 100


class HealthListener:
    """Serves Check and Watch of grpc.health.v1 on a separate address.

    Use as an async context manager.

    Attributes:
        address: Where it listens; with the port that was chosen for port 0.
        keeper: Limits its connections; the owner runs it once it listens.
        open_calls: Its open calls; the owner runs a sweeper for them.
    """

    keeper: ConnectionKeeper

    def __init__(self, service: HealthService, settings: Settings) -> None:
        self._unix_socket_mode = settings.unix_socket_mode
        self.address = address = settings.health_address
        # Not those of the main listener: calls for vectors must not take the places of probes.
        self.open_calls = OpenCalls(settings, message_bytes_max=HEALTH_MESSAGE_BYTES)
        backstop = _LIMITS.backstop(address)
        errors = ErrorInterceptor(self.open_calls, max_fields=_FIELDS_MAX)
        self._server = grpc.aio.server(
            interceptors=[errors], options=health_channel_arguments(max_connections=backstop)
        )
        health_pb2_grpc.add_HealthServicer_to_server(service, self._server)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            StartError: The address cannot be bound.
        """
        self.address = listen(
            self._server,
            self.address,
            unix_socket_mode=self._unix_socket_mode,
            flag="--health-address",
        )
        await self._server.start()
        # Health calls do not count as activity: here every connection is idle.
        self.keeper = ConnectionKeeper("health", self.address, lambda _: Activity(), _LIMITS)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Every check is answered at once: there is nothing to wait for.
        await self._server.stop(None)
