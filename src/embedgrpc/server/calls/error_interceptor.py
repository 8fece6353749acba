"""Stands around every handler, so that whatever goes wrong leaves as a proper status.

Bare grpc.aio answers a malformed message and an unexpected exception with UNKNOWN and the text
of the exception, which may hold what the caller sent; and it answers a stray CancelledError not
at all, which leaves the client hanging. A unary call without a message it never answers.
"""

import asyncio
import contextlib
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from embedgrpc.engine.errors import BackendUnavailableError, EngineError
from embedgrpc.server.calls.field_count import bound_fields
from embedgrpc.server.calls.open_calls import OpenCall, OpenCalls
from embedgrpc.server.calls.requests import RequestParser, RequestStream, read_single
from embedgrpc.server.rpc.handlers import (
    behavior_of,
    forget_frames,
    make_reading_handler,
    serializer_of,
    write_all,
)

_logger = logging.getLogger(__name__)

# Methods whose messages hold names alone, and the most bytes of one: a name has 128 characters.
_NAMING = ("/grpc.health.", "/grpc.reflection.", "/embedgrpc.v1.ModelService/")
_NAMING_BYTES_MAX = 4096
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers of every call shape, and reads for them. Only `ShutdownGate` is inside it.

    Args:
        calls: Keeps account of all calls.
        max_fields: The most fields of a message that is large, those of messages inside of it
            included.
    """

    def __init__(self, calls: OpenCalls, *, max_fields: int) -> None:
        self._calls = calls
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
            answer = _Guarded(handler, method, self._calls, self._max_fields).answer
            guarded = self._guarded[method] = make_reading_handler(handler, answer)
        return guarded


class _Guarded:
    """One method: answers its calls, whatever becomes of them."""

    def __init__(self, handler: Any, method: str, calls: OpenCalls, max_fields: int) -> None:
        self._behavior = behavior_of(handler)
        self._generates = inspect.isasyncgenfunction(self._behavior)
        self._takes_stream = handler.request_streaming
        self._gives_stream = handler.response_streaming
        self._serialize = serializer_of(handler)
        self._takes_names = method.startswith(_NAMING)
        # Whether a server is alive must not depend on how much it has to do.
        self._needs_place = method != _HEALTH_CHECK
        self._method = method
        self._calls = calls
        self._parser = RequestParser(
            deserialize=bound_fields(handler.request_deserializer or bytes, max_fields),
            method=method,
            max_bytes=_NAMING_BYTES_MAX if self._takes_names else math.inf,
            # Handlers that are written for streams look at this themselves.
            idle_timeout_s=calls.stream_idle_timeout_s if self._generates else math.inf,
        )

    async def answer(self, _: Any, context: Any) -> bytes | None:
        """Answer one call; gRPC calls this."""
        failure: EngineError | None = None
        call = self._calls.open(context)
        try:
            return await self._serve(call, context)
        except EngineError as error:
            failure = error
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # A write failed: the client has left.
            pass
        except asyncio.CancelledError:
            # gRPC cancels the task of a call that the client or the deadline ended; any
            # other cancellation came in through something that was awaited.
            if is_cancelled():
                raise
            failure = stray_cancellation(self._method)
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            failure = EngineError.fault()
            log_fault(error, failure, method=self._method)
        # Outside of the block, or the failure of the abort would hold this one and its frames.
        if failure is not None:
            forget_frames(failure)
            with contextlib.suppress(grpc.aio.InternalError):
                await call.end(failure)
        await call.leave()
        return None

    async def _serve(self, call: OpenCall, context: Any) -> bytes | None:
        """Take in what the client sends and let the handler answer."""
        if self._needs_place:
            self._calls.take_place(call)
        if self._takes_names:
            call.use_small_messages()
        # Nothing here holds on to a request while it is worked on.
        if self._takes_stream:
            answering = self._behavior(RequestStream(call, self._parser), context)
        else:
            request = await read_single(call, self._parser)
            if self._takes_names:
                # A watch goes on for hours, and holds no more than a name.
                call.release_only_request()
            answering = self._behavior(request, context)
            del request
        if self._generates:
            await write_all(answering, call)
            return None
        response = await answering
        if self._gives_stream:
            return None
        data = self._serialize(response)
        call.answer(len(data))
        return data


def log_fault(error: Exception, fault: EngineError, *, method: str) -> None:
    """Logs where it happened, and not what the exception says: that may hold a text."""
    _logger.error("unexpected exception", extra={"method": method, **fault.log_fields(error)})


def is_cancelled() -> bool:
    """Tell whether somebody has asked for the end of the running task.

    A task that ends so keeps its exception, and with it the frames that this came through: none
    of them may hold the task.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def stray_cancellation(method: str) -> EngineError:
    """Makes the answer to a cancellation that neither the caller nor the deadline asked for."""
    _logger.warning("stray cancellation", extra={"method": method})
    return BackendUnavailableError("the work was cancelled; try again")
