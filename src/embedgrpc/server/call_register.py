"""Knows the calls that are open on each connection, and bounds how many there are in all."""

import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.connections import address_of
from embedgrpc.server.errors import message_of, status_code, trailing_metadata
from embedgrpc.server.handlers import behavior_of, make_handler, write_all
from embedgrpc.server.metrics import Reading

# Health and reflection: a connection that does nothing else is idle.
_OWN_SERVICES = "/grpc."
# A stream on which nothing came and went for this long does not keep its connection open when
# others need one.
_STREAM_QUIET_S = 10.0
# When a caller that was refused for the number of its calls should try again.
_RETRY_S = 1.0


@dataclass(slots=True)
class Activity:
    """What goes on at one connection.

    Attributes:
        open: Calls of every kind that are open.
        calls: Unary calls among them, but for those to gRPC's own services.
        streams: Streams, likewise.
        active_at: When a call last began or ended, or a message of a stream came or went, on the
            monotonic clock.
    """

    open: int = 0
    calls: int = 0
    streams: int = 0
    active_at: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether no call is open but to gRPC's own services."""
        return not self.calls and not self.streams

    def quiet(self, now: float) -> bool:
        """Return whether only streams are open, on which nothing happens."""
        return not self.calls and now - self.active_at >= _STREAM_QUIET_S


_current: ContextVar[Activity | None] = ContextVar("activity", default=None)


def note_activity() -> None:
    """Take note that a message came or went on the stream of this task."""
    activity = _current.get()
    if activity is not None:
        activity.active_at = time.monotonic()


class CallRegister(grpc.aio.ServerInterceptor):
    """Counts the calls of each connection, and refuses those beyond the bound.

    An address may have as many calls as are still free, and a connection as many as are still
    free to its address. So one connection alone gets a third of them, and however many there
    are, another connection finds room, and another address more.

    Args:
        max_calls: The most calls at once.
        max_peers: How many connections are remembered that have no call.
    """

    def __init__(self, *, max_calls: int, max_peers: int) -> None:
        self.refused = 0
        self._max_calls = max_calls
        self._max_peers = max_peers
        self._calls = 0
        self._by_address: dict[str, int] = {}
        # The connection whose last call began earliest is first.
        self._by_peer: dict[str, Activity] = {}
        self._handlers: dict[str, Any] = {}

    def activity_of(self, peer: str) -> Activity:
        """Return what goes on at a connection."""
        return self._by_peer.get(peer) or Activity()

    def read(self) -> Iterator[Reading]:
        """Tell how many calls there are and how many were refused. From any thread."""
        yield Reading("embedgrpc.calls.open", self._calls, {})
        yield Reading("embedgrpc.calls.refused", self.refused, {})

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call; gRPC calls this."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        registered = self._handlers.get(method)
        if registered is None:
            registered = self._handlers[method] = self._register(handler, method)
        return registered

    def _register(self, handler: Any, method: str) -> Any:
        behavior = behavior_of(handler)
        generates = inspect.isasyncgenfunction(behavior)
        streams = int(handler.request_streaming and handler.response_streaming)
        works = not method.startswith(_OWN_SERVICES)

        async def answer(request: Any, context: Any) -> Any:
            peer = context.peer()
            address = address_of(peer)
            of_address = self._by_address.get(address, 0)
            activity = self._enter(peer)
            if activity.open >= self._max_calls - self._calls - of_address:
                # The frames of a refused call outlive it, and the request would with them.
                del request
                return await self._refuse(context)
            self._calls += 1
            self._by_address[address] = of_address + 1
            activity.open += 1
            if works:
                activity.streams += streams
                activity.calls += 1 - streams
                activity.active_at = time.monotonic()
                _current.set(activity)
            try:
                if generates:
                    return await write_all(behavior(request, context), context)
                return await behavior(request, context)
            finally:
                self._leave(address)
                activity.open -= 1
                if works:
                    activity.streams -= streams
                    activity.calls -= 1 - streams
                    activity.active_at = time.monotonic()

        return make_handler(handler, answer, handler.request_deserializer)

    async def _refuse(self, context: Any) -> None:
        self.refused += 1
        error = OverloadedError(
            f"too many calls are open: the server takes {self._max_calls} at once, and keeps some"
            " of them for other connections and addresses",
            metadata={"label": "too_many_calls", "maxCalls": str(self._max_calls)},
            retry_delay_s=_RETRY_S,
        )
        await context.abort(status_code(error), message_of(error), trailing_metadata(error))

    def _leave(self, address: str) -> None:
        self._calls -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _enter(self, peer: str) -> Activity:
        """Return the record of a connection, as the one that was used last."""
        activity = self._by_peer.pop(peer, None) or Activity()
        self._by_peer[peer] = activity
        if len(self._by_peer) > self._max_peers:
            oldest = next(iter(self._by_peer))
            record = self._by_peer.pop(oldest)
            if record.open or oldest == peer:
                self._by_peer[oldest] = record
        return activity
