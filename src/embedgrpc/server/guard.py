"""Stands around every handler, so that whatever goes wrong leaves as a proper status.

Bare grpc.aio answers a malformed message and an unexpected exception with UNKNOWN and the text
of the exception, which may hold what the caller sent; and it answers a stray CancelledError not
at all, which leaves the client hanging.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from embedgrpc.engine.errors import (
    BackendUnavailableError,
    EngineError,
    InvalidRequestError,
)
from embedgrpc.server.errors import message_of, status_code, trailing_metadata
from embedgrpc.server.field_count import bound_fields
from embedgrpc.server.handlers import behavior_of, make_handler, write_all

_logger = logging.getLogger(__name__)


# How long gRPC may take to tell that a call is over.
_CANCELLATION_S_MAX = 1.0
# So much is parsed, and made strings of, within a millisecond.
_LARGE_BYTES = 1024 * 1024


class _Malformed:
    """Stands for a message that could not be parsed."""


_MALFORMED = _Malformed()


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Wraps deserializers and handlers of every call shape; the innermost of the interceptors.

    Args:
        max_fields: The most fields of a message that is large, those of messages inside of it
            included.
    """

    def __init__(self, *, max_fields: int) -> None:
        self._max_fields = max_fields
        # What gRPC has for a method is the same for every call.
        self._guarded: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one call; gRPC calls this."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            guarded = self._guarded[method] = _guard(handler, method, self._max_fields)
        return guarded


def _guard(handler: Any, method: str, max_fields: int) -> Any:
    behavior = behavior_of(handler)
    generates = inspect.isasyncgenfunction(behavior)

    async def answer(request: Any, context: Any) -> Any:
        try:
            if handler.request_streaming:
                request = _well_formed_stream(request)
            else:
                request = await _well_formed(request)
            if generates:
                return await write_all(behavior(request, context), context)
            return await behavior(request, context)
        except EngineError as error:
            await _abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            await _end_quietly()
            raise
        except asyncio.CancelledError:
            # gRPC cancels the task of a call that the client or the deadline ended; any
            # other cancellation came in through something that was awaited.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await _abort(context, stray_cancellation(method))
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            fault = EngineError.fault()
            log_fault(error, fault, method=method)
            await _abort(context, fault)

    deserialize = _guard_deserializer(handler.request_deserializer, method, max_fields)
    return make_handler(handler, answer, deserialize)


async def _end_quietly() -> None:
    """Makes no incident of a write to a call that its client has just left.

    The cancellation is on its way, and ends this.
    """
    await asyncio.sleep(_CANCELLATION_S_MAX)


def _guard_deserializer(
    deserialize: Callable[[bytes], Any] | None, method: str, max_fields: int
) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None
    parse = bound_fields(deserialize, max_fields)

    def guarded(data: bytes) -> Any:
        try:
            return parse(data)
        except InvalidRequestError as refusal:
            return refusal.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - whatever a parser raises on foreign bytes
            _logger.debug(
                "malformed message",
                extra={"method": method, "bytes": len(data), "error": type(error).__name__},
            )
            return _MALFORMED

    return guarded


async def _well_formed(request: Any) -> Any:
    """Lets a request pass unless it could not be parsed."""
    if request is _MALFORMED:
        raise InvalidRequestError(
            "the message is not a valid protobuf message of this method",
            metadata={"label": "malformed_message"},
        )
    if isinstance(request, InvalidRequestError):
        raise request
    if isinstance(request, Message) and request.ByteSize() > _LARGE_BYTES:
        # To parse it took a turn of the event loop, to look at it may take another.
        await asyncio.sleep(0)
    return request


async def _well_formed_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield await _well_formed(request)


def log_fault(error: Exception, fault: EngineError, *, method: str) -> None:
    """Logs where it happened, and not what the exception says: that may hold a text."""
    _logger.error("unexpected exception", extra={"method": method, **fault.log_fields(error)})


def stray_cancellation(method: str) -> EngineError:
    """Makes the answer to a cancellation that neither the caller nor the deadline asked for."""
    _logger.warning("stray cancellation", extra={"method": method})
    return BackendUnavailableError("the work was cancelled; try again")


async def _abort(context: Any, error: EngineError) -> None:
    try:
        await context.abort(status_code(error), message_of(error), trailing_metadata(error))
    except grpc.aio.InternalError:
        await _end_quietly()
        raise
