"""Stops a server without losing a call that has reached it.

When a server stops, gRPC's core asks the clients to leave (GOAWAY). Calls that it has received and
not handed over, and those that arrive before a client has read the GOAWAY, it answers with
CANCELLED, which few clients try again. It has no way to ask first and to go on taking calls in.

So nobody may be about to send a call at that moment. New calls are held back, and so is the end of
every call: whoever waits for an answer sends nothing more, and the last calls of those who had
their answer before come in. Once none has come for a while, the stop begins, and everything goes
on behind the GOAWAY.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.rpc.handlers import behavior_of, make_handler

# Nothing came for this long: nothing is on its way.
_QUIET_S = 0.1
_STEP_S = 0.01
# A pause that takes this much longer than it should: others on this machine may not have come to
# run either, and a client may be among them.
_LATE_S = 0.01
# Where calls never stop coming, some of them are lost whenever the stop begins.
HOLD_S_MAX = 0.5


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Lets calls in and answers out; holds both back while the server is about to stop.

    The innermost of the interceptors, so that refusals of handlers are held back as well. Those of
    the guard, which looks at messages before, are not.
    """

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._arrivals = 0
        # What gRPC has for a method is the same for every call.
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Waits until the call may go on; gRPC calls this."""
        self._arrivals += 1
        if not self._open.is_set():
            await self._open.wait()
        method = handler_call_details.method
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is not None:
            handler = self._handlers[method] = self._hold(handler)
        return handler

    def _hold(self, handler: Any) -> Any:
        """Makes a handler whose calls do not end before the door is open."""
        behavior = behavior_of(handler)
        if not inspect.iscoroutinefunction(behavior):
            return handler

        async def answer(request: Any, context: Any) -> Any:
            try:
                response = await behavior(request, context)
            except BaseException as error:
                # The exception keeps this frame, and may be kept for long.
                request = context = None
                if isinstance(error, EngineError) and not self._open.is_set():
                    await self._open.wait()
                raise
            if not self._open.is_set():
                await self._open.wait()
            return response

        return make_handler(handler, answer)

    async def stop(self, server: grpc.aio.Server, grace_s: float) -> None:
        """Stops a server.

        Args:
            server: This is one of its interceptors.
            grace_s: Time that calls which came in get to finish.
        """
        self._open.clear()
        await self._until_quiet()
        stop = asyncio.ensure_future(server.stop(grace_s))
        # One turn of the loop is what it takes to tell the core.
        await asyncio.sleep(0)
        self._open.set()
        await stop

    async def _until_quiet(self) -> None:
        """Waits until no call has come for a while."""
        began = quiet_since = now = time.monotonic()
        arrivals = self._arrivals
        while now - quiet_since < _QUIET_S and now - began < HOLD_S_MAX:
            await asyncio.sleep(_STEP_S)
            late = time.monotonic() - now > _STEP_S + _LATE_S
            now = time.monotonic()
            if late or arrivals != self._arrivals:
                arrivals, quiet_since = self._arrivals, now
