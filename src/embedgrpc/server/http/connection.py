"""One connection of the HTTP port, with the bounds that aiohttp's own lacks."""

import asyncio
import logging
import math
import time
from collections import Counter
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from embedgrpc.engine.errors import EngineError, InvalidRequestError
from embedgrpc.server.calls.error_interceptor import log_fault
from embedgrpc.server.connections.connection_table import address_of
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.pace import Pace, cost_s
from embedgrpc.server.http.peers import peer_of
from embedgrpc.server.http.protocol import answer_in_http_1_1
from embedgrpc.server.rpc.handlers import forget_frames
from embedgrpc.server.rpc.metadata_size import METADATA_BYTES_MAX

_logger = logging.getLogger(__name__)

# The head of a request that is still coming in: its path, and its headers.
_HEAD_BYTES_MAX: Final = 2 * METADATA_BYTES_MAX
# Requests that a client has sent ahead; aiohttp reads no more of them, and would read 32.
_WAITING_REQUESTS_MAX: Final = 4
_HEAD_STATUS: Final = 431
_FAULT_STATUS: Final = 500
# As aiohttp says it; its limit is 128.
_TOO_MANY_HEADERS: Final = "Too many headers received"


class Connection(web.RequestHandler):
    """A connection.

    Attributes:
        address: That of its client, as connections are counted by it.
        socket: Its transport, even after aiohttp has forgotten it.
        requests: How many requests it has made, with those that were malformed.
        idle_since: When its last answer was sent; infinity while one is made.
        head_since: When the head began that is still coming in; infinity if there is none.
    """

    __slots__ = (
        "_head_bytes",
        "_is_broken",
        "_last_body",
        "address",
        "head_since",
        "idle_since",
        "requests",
        "socket",
    )

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._max_msg_queue_size, self._msg_queue_resume_size = _WAITING_REQUESTS_MAX, 1
        self.address = ""
        self.socket: asyncio.Transport | None = None
        self.requests = 0
        self.idle_since = time.monotonic()
        self.head_since = math.inf
        self._head_bytes = 0
        self._is_broken = False
        self._last_body: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this."""
        # uvloop's transports have no base class of asyncio.
        self.socket = cast("asyncio.Transport", transport)
        self.address = address_of(peer_of(transport))
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and refuse a head that is too large before it is complete."""
        if self._is_broken:
            # The parser would raise another error for each read, which aiohttp would keep.
            return
        before = self._request_count
        # The last bytes of a body are no head, either.
        is_body = self._body_comes_in()
        super().data_received(data)
        if self._request_count != before and self._messages:
            message, self._last_body = self._messages[-1]
            if (error := getattr(message, "exc", None)) is not None:
                self._is_broken = True
                # Its frames hold the connection and what was read, and are held by it.
                forget_frames(error)
        if self._request_count != before or is_body:
            self._head_bytes = 0
            self.head_since = math.inf
            return
        self._last_body = None
        if not self._head_bytes:
            self.head_since = time.monotonic()
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES_MAX:
            self._refuse_head()

    def _body_comes_in(self) -> bool:
        return self._last_body is not None and not self._last_body.is_eof()

    @property
    def is_leaving(self) -> bool:
        """Whether it is closed as soon as the client has read its last answer."""
        return self.socket is not None and self.socket.is_closing()

    def waits_since(self) -> float:
        """Return since when it has waited for the rest of a request's head; infinity if not.

        What a client sends while its last request is answered may wait, too.
        """
        if not self.requests:
            return self.idle_since
        return max(self.head_since, self.idle_since)

    def begin(self, task: "asyncio.Task[Any] | None") -> None:
        """Count a request, whose answer a task makes and sends."""
        self.requests += 1
        self.idle_since = math.inf
        if task is not None:
            task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self.idle_since = time.monotonic()
        if task.cancelled():
            # Else what the client does not read stays in memory for as long as it likes.
            self.abort()

    def abort(self) -> None:
        """Close it at once: what the client has not read is dropped."""
        if self.socket is not None:
            self.socket.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _FAULT_STATUS,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP in the form of all errors, without a byte of the request.

        aiohttp's own answer quotes the request and logs it, with its credentials and texts.

        Raises:
            ConnectionError: A part of another answer has been sent.
        """
        del message
        if request.writer.output_size > 0:
            raise ConnectionError
        if _is_too_large(exc):
            status = _HEAD_STATUS
        if status < _FAULT_STATUS:
            error: EngineError = InvalidRequestError(_head_message(status))
            _logger.debug("malformed request", extra={"kind": type(exc).__name__})
            self.count_refusal()
        else:
            error = EngineError.fault()
            if isinstance(exc, Exception):
                log_fault(exc, error, method="http")
        answer_in_http_1_1(request)
        response = _response(error, status)
        response.force_close()
        return response

    def _make_error_handler(self, err_info: Any) -> Any:
        """Return what answers a malformed request; aiohttp calls this."""
        answer = super()._make_error_handler(err_info)

        async def answer_in_time(request: web.BaseRequest) -> web.StreamResponse:
            if isinstance(self._manager, ConnectionServer):
                pace = self._manager.pace
                # What came with it may be a flood of heads.
                cost = cost_s(
                    head_bytes=_HEAD_BYTES_MAX if _is_too_large(err_info.exc) else 0, closes=True
                )
                await pace.wait(pace.charge(self.address, cost))
            response: web.StreamResponse = await answer(request)
            return response

        return answer_in_time

    def count_refusal(self) -> None:
        """Count a request that took memory in vain."""
        if isinstance(self._manager, ConnectionServer):
            self._manager.refusals += 1

    def _refuse_head(self) -> None:
        if self.socket is None or self.socket.is_closing():
            return
        self.count_refusal()
        if isinstance(self._manager, ConnectionServer):
            self._manager.pace.charge(
                self.address, cost_s(head_bytes=self._head_bytes, closes=True)
            )
        # No other answer may be under way.
        if self.idle_since <= time.monotonic():
            response = _response(InvalidRequestError(_head_message(_HEAD_STATUS)), _HEAD_STATUS)
            body = response.body if isinstance(response.body, bytes) else b""
            self.socket.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
        self.force_close()


class ConnectionServer(web.Server):
    """Makes the connections of a listener.

    Args:
        handler: Answers a request.
        connections: From so many on, addresses with more than their share of them open further
            ones slowly.
        connections_max: How many there may be; a further one is closed at once.
        pace: Slows down some addresses.
        settings: What aiohttp sets for each.

    Attributes:
        refusals: Requests that were malformed, or had too large a head.
        pace: Slows down some addresses.
    """

    def __init__(
        self,
        handler: Any,
        *,
        connections: int,
        connections_max: int,
        pace: Pace,
        **settings: Any,
    ) -> None:
        super().__init__(handler, **settings)
        self.refusals = 0
        self.pace = pace
        self._many = connections
        self._connections_max = connections_max
        self._by_address: Counter[str] = Counter()

    def __call__(self) -> Connection:
        """Make a connection; asyncio calls this."""
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def has_room(self, address: str, *, connecting: int) -> bool:
        """Return whether an address may open another connection now.

        Args:
            address: The address, as connections are counted by it.
            connecting: Connections that are being opened.
        """
        open_now = len(self._connections) + connecting
        if open_now >= self._connections_max:
            return False
        if open_now >= self._many:
            share = open_now / max(len(self._by_address), 1)
            is_slow = self._by_address[address] >= share
        else:
            is_slow = self.pace.is_slowed_down(address)
        return not is_slow or self.pace.may_connect(address)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection."""
        super().connection_made(handler, transport)
        self._by_address[cast("Connection", handler).address] += 1

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Forget a connection."""
        if handler in self._connections:
            address = cast("Connection", handler).address
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
        super().connection_lost(handler, exc)


def _is_too_large(error: BaseException | None) -> bool:
    return isinstance(error, LineTooLong) or str(error).endswith(_TOO_MANY_HEADERS)


def _head_message(status: int) -> str:
    if status == _HEAD_STATUS:
        return f"the headers are too large; the limit is {METADATA_BYTES_MAX} bytes"
    return "this is not a valid HTTP/1.1 request"


def _response(error: EngineError, status: int) -> web.Response:
    status, body = openai_error(error, status)
    return web.Response(body=body, status=status, content_type="application/json")
