"""Stops a server without losing a call that has reached it.

What gRPC has received and not yet handed over when a server stops, it answers with CANCELLED,
which no client tries again. So new calls are held back for a moment first: their clients wait
instead of sending more, and the last that were on their way come in. They go on once the stop
has begun.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

# Nothing came for this long: nothing is on its way.
_QUIET_S = 0.02
# Where calls never stop coming, some of them are lost whenever the stop begins.
_HOLD_S_MAX = 0.25


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Lets calls in, and holds them back while the server is about to stop."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._arrivals = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Waits until the call may go on; gRPC calls this."""
        self._arrivals += 1
        if not self._open.is_set():
            await self._open.wait()
        return await continuation(handler_call_details)

    async def stop(self, server: grpc.aio.Server, grace_s: float) -> None:
        """Stops a server.

        Args:
            server: This is one of its interceptors.
            grace_s: Time that calls which came in get to finish.
        """
        self._open.clear()
        until = time.monotonic() + _HOLD_S_MAX
        arrivals = -1
        while arrivals != self._arrivals and time.monotonic() < until:
            arrivals = self._arrivals
            await asyncio.sleep(_QUIET_S)
        stop = asyncio.ensure_future(server.stop(grace_s))
        # One turn of the loop is what it takes to tell the core.
        await asyncio.sleep(0)
        self._open.set()
        await stop
