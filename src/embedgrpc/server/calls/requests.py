"""The request messages of one call: read, counted and parsed."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc.aio

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.calls.open_call import OpenCall, request_id_field

_logger = logging.getLogger(__name__)

# At first, a client that has left looks like one that has sent everything.
_CANCELLATION_S = 0.01
# Parsing this much, and making strings of it, takes a millisecond.
_LARGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RequestParser:
    """Parses the request messages of a method.

    Attributes:
        deserialize: Makes a message of bytes; may raise any exception.
        method: The method's full name, for the log.
        max_bytes: The most bytes of one message.
        idle_timeout_s: How long the client of a stream may send no message; infinity where the
            handler checks that.
    """

    deserialize: Callable[[bytes], Any]
    method: str
    max_bytes: float
    idle_timeout_s: float

    def parse(self, data: bytes) -> Any:
        """Parse a message.

        Raises:
            InvalidRequestError: It is too large, or malformed.
        """
        if len(data) > self.max_bytes:
            raise InvalidRequestError(
                f"the message has {len(data)} bytes; the limit of this method is {self.max_bytes}",
                metadata={
                    "label": "MESSAGE_TOO_LARGE",
                    "bytes": str(len(data)),
                    "limit": str(self.max_bytes),
                },
            )
        try:
            return self.deserialize(data)
        except InvalidRequestError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a parser raises on foreign bytes
            _logger.debug(
                "malformed message",
                extra={
                    "method": self.method,
                    "bytes": len(data),
                    "error": type(error).__name__,
                    **request_id_field(),
                },
            )
        raise InvalidRequestError(
            "the message is not a valid protobuf message of this method",
            metadata={"label": "MALFORMED_MESSAGE"},
        )


async def read_single(call: OpenCall, parser: RequestParser) -> Any:
    """Read the message of a call that takes one; ignore any others.

    Raises:
        InvalidRequestError: There is none, or it is malformed.
    """
    data = await call.read_first()
    if data is grpc.aio.EOF:
        await asyncio.sleep(_CANCELLATION_S)
        raise InvalidRequestError(
            "the call ended without a message; this method takes one",
            metadata={"label": "NO_MESSAGE"},
        )
    message = parser.parse(data)
    await _yield_after(data)
    return message


async def _yield_after(data: bytes) -> None:
    """Let other calls run after a large message.

    Parsing it held up the event loop, and validating it may do so again.
    """
    if len(data) > _LARGE_BYTES:
        await asyncio.sleep(0)


class RequestStream:
    """The messages of a stream, in order.

    Attributes:
        last_bytes: The size of the last message.
    """

    def __init__(self, call: OpenCall, parser: RequestParser) -> None:
        self.last_bytes = 0
        self._call = call
        self._parser = parser
        self._began = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._began:
            data = await self._call.read_next(idle_timeout_s=self._parser.idle_timeout_s)
        else:
            data = await self._call.read_first()
            self._began = True
            if data is not grpc.aio.EOF:
                self._call.release_stream_request(len(data))
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        self.last_bytes = len(data)
        message = self._parser.parse(data)
        await _yield_after(data)
        return message
