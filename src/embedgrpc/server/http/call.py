"""A call over HTTP, in the place of gRPC's: the same budgets, limits and registry hold for it.

`HttpContext` has the methods of gRPC's context that the server uses, so that a rule about callers,
deadlines, work classes or request ids exists once.
"""

import asyncio
import re
from contextlib import suppress
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.http_exceptions import HttpProcessingError

from embedgrpc.engine.errors import EngineError, InvalidRequestError
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.http.failures import HttpError
from embedgrpc.server.http.peers import peer_of

TIMEOUT_HEADER: Final = "x-request-timeout"
_TIMEOUT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|)")
# Copying this much takes a tenth of a millisecond where memory is fresh.
_JOINED_BYTES_MAX = 256 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# What a refused request may still send.
_SMALL_BYTES = 16 * 1024
_SMALL_BODY_S = 1.0
# How long the body of a refused call may take.
_DISCARD_S_MAX = 2.0
# The body was malformed, ended early, or came after the connection broke.
_BROKEN_BODY = (ClientPayloadError, HttpProcessingError, web.PayloadAccessError)


class HttpContext:
    """The context of a call over HTTP. Header names are in lower case, as gRPC's metadata is.

    Args:
        request: The request; its body has not been read.
        max_bytes: The largest body.

    Attributes:
        headers: Headers for the response.
        body_is_read: Whether nothing of the request is left on the connection.
        body_bytes: The bytes of the body that were read.
    """

    def __init__(self, request: web.BaseRequest, *, max_bytes: int) -> None:
        self.headers: dict[str, str] = {}
        self.body_is_read = not request.body_exists
        self.body_bytes = 0
        self._request = request
        self._max_bytes = max_bytes
        self._peer = peer_of(request.transport)
        self._metadata = tuple(
            # Bytes that are no ASCII become bytes, as in gRPC's binary metadata.
            (key.lower(), value if value.isascii() else value.encode("utf-8", "surrogateescape"))
            for key, value in request.headers.items()
        )

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return the headers of the request."""
        return self._metadata

    def header(self, name: str) -> str:
        """Return a header of the request, in lower case; empty without one."""
        return self._request.headers.get(name, "")

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Set headers of the response."""
        self.headers.update(metadata)

    def peer(self) -> str:
        """Return the other end of the connection, in gRPC's form."""
        return self._peer

    def auth_context(self) -> dict[str, tuple[bytes, ...]]:
        """Return what the client's certificate says of it, in gRPC's form; {} without one."""
        transport = self._request.transport
        certificate: Any = transport.get_extra_info("peercert") if transport else None
        names = certificate.get("subjectAltName", ()) if certificate else ()
        uris = tuple(value.encode() for kind, value in names if kind == "URI")
        return {"peer_uri": uris} if uris else {}

    def time_remaining(self) -> float | None:
        """Return the seconds that the client allows; None if it sets no limit.

        Raises:
            InvalidRequestError: The header is malformed.
        """
        value = self._request.headers.get(TIMEOUT_HEADER)
        if value is None:
            return None
        match = _TIMEOUT.fullmatch(value.strip())
        if match is None:
            raise InvalidRequestError(
                f"header {TIMEOUT_HEADER} must be a number of seconds, such as 2.5, 2.5s or 500ms",
                field=TIMEOUT_HEADER,
            )
        return float(match[1]) * (0.001 if match[2] == "ms" else 1)

    async def read(self) -> bytes:
        """Read the body.

        Raises:
            HttpError: It is too large.
            EngineError: It is malformed, or `fail` was called meanwhile.
        """
        request = self._request
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large(request.content_length or 0)
        expected = request.headers.get("expect")
        # A client of HTTP/1.0 does not know the interim response (RFC 9110, section 10.1.1).
        if expected is not None and request.version >= HttpVersion11:
            if expected.lower() != "100-continue":
                raise HttpError(417, InvalidRequestError("header expect must be 100-continue"))
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0
        chunks: list[bytes] = []
        try:
            while chunk := await request.content.readany():
                self.body_bytes += len(chunk)
                if self.body_bytes > self._max_bytes:
                    raise self._too_large(self.body_bytes)
                chunks.append(chunk)
        except _BROKEN_BODY:
            raise InvalidRequestError(
                "the body did not arrive whole", metadata={"label": "MALFORMED_MESSAGE"}
            ) from None
        self.body_is_read = True
        if self.body_bytes > _JOINED_BYTES_MAX:
            # Bodies that end in the same turn of the event loop would be copied in one go.
            return await asyncio.to_thread(b"".join, chunks)
        return b"".join(chunks)

    async def drop_small_body(self) -> None:
        """Read a body that nobody needs, if it is small and comes at once: the connection is kept.

        A caller that is refused often would else connect each time, which costs more than its body.
        """
        request = self._request
        length = request.content_length
        if self.body_is_read or length is None or length > _SMALL_BYTES or self.header("expect"):
            return
        with suppress(TimeoutError, EngineError):
            async with asyncio.timeout(_SMALL_BODY_S):
                await self.read()

    async def discard_body(self) -> None:
        """Read the body and forget it, for the client of a call that is refused without it.

        Most clients send all of a body before they read, and one that is cut off takes that for a
        broken connection. A client that waits for the go-ahead, sends too much or is slow is cut
        off all the same.
        """
        request, size = self._request, self._request.content_length or 0
        if self.body_is_read or "expect" in request.headers or size > self._max_bytes:
            return
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_S_MAX):
                while chunk := await request.content.readany():
                    size += len(chunk)
                    if size > self._max_bytes:
                        return
        except (TimeoutError, *_BROKEN_BODY):
            return
        self.body_is_read = True

    def fail(self, error: EngineError) -> None:
        """End the reading of the body with an error."""
        self._request.content.set_exception(error)

    def _too_large(self, size: int) -> HttpError:
        return HttpError(
            413,
            InvalidRequestError(
                f"the body has {size} bytes or more; the limit is {self._max_bytes}",
                metadata={
                    "label": "MESSAGE_TOO_LARGE",
                    "bytes": str(size),
                    "limit": str(self._max_bytes),
                },
            ),
        )


class HttpCall(OpenCall):
    """A call over HTTP."""

    __slots__ = ()

    async def abort(self, error: EngineError) -> None:
        """End the reading of the request; the handler then sends the error."""
        self.begin_abort()
        self.context.fail(error)
