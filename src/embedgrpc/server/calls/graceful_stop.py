"""Stop a server without losing a call that has reached it.

When a server stops, gRPC's core sends GOAWAY to its clients. It answers CANCELLED to calls that
are received but not yet handed over, and to calls that arrive before their client has read the
GOAWAY. Few clients retry CANCELLED. The core cannot send GOAWAY first and go on accepting calls.

So no client may be about to send a call at that moment. The gate holds back new calls, and also
the responses of the calls that run: a client that waits for a response rarely sends more. Once no
call has come for a while, the stop begins, and all calls go on behind the GOAWAY.

Source: https://github.com/grpc/grpc/issues/41785, "Pending calls are CANCELLED on server
shut-down".
"""

import asyncio
import inspect
import time
from typing import Any

import grpc.aio

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.rpc.handlers import HandlerInterceptor, behavior_of, make_handler

# After this long without a new call, none is on its way.
QUIET_S = 0.1
_STEP_S = 0.01
# A sleep that ends this late shows a busy machine, on which clients may be late, too.
_LATE_S = 0.01
# Where calls never cease, some are lost whenever the stop begins.
HOLD_S_MAX = 0.5


class ShutdownGate(HandlerInterceptor):
    """A gate that new calls and responses pass; closed for a moment when the server stops.

    The innermost interceptor, so that it also holds back the errors of handlers. It does not hold
    back those of the `ErrorInterceptor`, which reads the request first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = asyncio.Event()
        self._open.set()
        self._arrivals = 0

    async def arrive(self) -> None:
        """Count a call, and hold it while the gate is closed."""
        self._arrivals += 1
        if not self._open.is_set():
            await self._open.wait()

    def wrap(self, handler: Any, method: str) -> Any:
        """Return a handler whose calls end only while the gate is open."""
        del method
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

        # What is around it forgets the frames of its exceptions.
        return make_handler(handler, answer, forgets=False)

    async def stop(self, server: grpc.aio.Server, grace_s: float) -> None:
        """Stop the server of this interceptor, with a grace for the open calls."""
        self._open.clear()
        await self._until_quiet()
        stop = asyncio.ensure_future(server.stop(grace_s))
        # One turn of the loop, in which the core learns of the stop.
        await asyncio.sleep(0)
        self._open.set()
        await stop

    async def _until_quiet(self) -> None:
        """Wait until no call has come for a while."""
        began = quiet_since = now = time.monotonic()
        arrivals = self._arrivals
        while now - quiet_since < QUIET_S and now - began < HOLD_S_MAX:
            await asyncio.sleep(_STEP_S)
            late = time.monotonic() - now > _STEP_S + _LATE_S
            now = time.monotonic()
            if late or arrivals != self._arrivals:
                arrivals, quiet_since = self._arrivals, now
