"""Records the activity of each connection: its open calls, and when it was last used."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from embedgrpc.server.rpc.handlers import HandlerInterceptor

# Health and reflection: a connection with only these is idle.
_OWN_SERVICES = "/grpc."
_SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
# A stream without messages for this long does not keep its connection open when other clients
# need one.
_STREAM_QUIET_S = 10.0


@dataclass(slots=True)
class Activity:
    """The activity of one connection. Health and reflection do not count.

    Attributes:
        calls: Unary calls in flight.
        streams: Streams that are open.
        active_at: When a call last began or ended, or a stream last received or sent a message,
            on the monotonic clock.
    """

    calls: int = 0
    streams: int = 0
    active_at: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self.calls and not self.streams

    def quiet(self, now: float) -> bool:
        """Return whether there are no calls except streams without messages."""
        return not self.calls and now - self.active_at >= _STREAM_QUIET_S


_current: ContextVar[Activity | None] = ContextVar("activity", default=None)


def note_activity() -> None:
    """Record that the stream of this task received or sent a message."""
    activity = _current.get()
    if activity is not None:
        activity.active_at = time.monotonic()


class ConnectionActivity(HandlerInterceptor):
    """Watches the calls of every connection. All handlers must be coroutine functions.

    Args:
        max_peers: How many connections are remembered.
    """

    def __init__(self, *, max_peers: int) -> None:
        super().__init__()
        self._max_peers = max_peers
        # Ordered by when their last call began, earliest first.
        self._by_peer: dict[str, Activity] = {}

    def of(self, peer: str) -> Activity:
        """Return the activity of a connection. From any thread."""
        return self._by_peer.get(peer) or Activity()

    def wrap(self, handler: Any, method: str) -> Any:
        """Return a handler that records the activity of its calls."""
        if method.startswith(_OWN_SERVICES):
            return handler
        shape = next(one for one in _SHAPES if getattr(handler, one))
        behavior = getattr(handler, shape)
        streams = int(handler.request_streaming and handler.response_streaming)

        async def answer(request: Any, context: Any) -> Any:
            activity = self._enter(context.peer())
            activity.streams += streams
            activity.calls += 1 - streams
            activity.active_at = time.monotonic()
            _current.set(activity)
            try:
                return await behavior(request, context)
            except BaseException:
                # gRPC stores the exception in the call, and the exception references this frame.
                request = context = None
                raise
            finally:
                activity.streams -= streams
                activity.calls -= 1 - streams
                activity.active_at = time.monotonic()

        return handler._replace(**{shape: answer})

    @contextmanager
    def calling(self, peer: str) -> Iterator[None]:
        """Record a call of another protocol than gRPC."""
        activity = self._enter(peer)
        activity.calls += 1
        activity.active_at = time.monotonic()
        try:
            yield
        finally:
            activity.calls -= 1
            activity.active_at = time.monotonic()

    def _enter(self, peer: str) -> Activity:
        """Return the record of a connection, and move it to the end."""
        activity = self._by_peer.pop(peer, None) or Activity()
        self._by_peer[peer] = activity
        if len(self._by_peer) > self._max_peers:
            oldest = next(iter(self._by_peer))
            record = self._by_peer.pop(oldest)
            if not record.idle or oldest == peer:
                self._by_peer[oldest] = record
        return activity
