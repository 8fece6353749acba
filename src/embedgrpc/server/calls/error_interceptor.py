"""Runs every handler so that each failure becomes a proper status.

Bare grpc.aio answers a malformed message or an unexpected exception with UNKNOWN and the text of
the exception, which may contain what the caller sent. It never answers a stray CancelledError,
nor a unary call without a message: the client hangs.
"""

import asyncio
import contextlib
import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

import grpc.aio

from embedgrpc.engine.errors import BackendUnavailableError, EngineError
from embedgrpc.server.calls.field_count import bound_fields
from embedgrpc.server.calls.method_needs import need_of
from embedgrpc.server.calls.open_call import OpenCall, request_id_field
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.calls.requests import RequestParser, RequestStream, read_single
from embedgrpc.server.rpc.handlers import (
    HandlerInterceptor,
    behavior_of,
    forget_frames,
    make_reading_handler,
    serializer_of,
    write_all,
)
from embedgrpc.server.rpc.metadata_size import check_metadata_size
from embedgrpc.server.telemetry.call_record import CallRecord

_logger = logging.getLogger(__name__)

# Methods whose messages contain only names, and the most bytes of one: a name has 128 characters.
_KSERVE = "/inference.GRPCInferenceService/"
_NAMING = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/embedgrpc.v1.ModelService/",
    "/tei.v1.Info/",
    f"{_KSERVE}Server",
    *(f"{_KSERVE}Model{what}" for what in ("Ready", "Metadata", "Config", "Statistics")),
    f"{_KSERVE}RepositoryIndex",
)
_NAMING_BYTES_MAX = 4096
# A busy server must still answer whether it is alive.
_PROBES = (
    "/grpc.health.v1.Health/Check",
    *(f"{_KSERVE}{what}" for what in ("ServerLive", "ServerReady", "ModelReady")),
)


class ErrorInterceptor(HandlerInterceptor):
    """Wraps handlers of every call shape, and reads for them. Only `ShutdownGate` is inside it.

    Args:
        calls: The registry of calls.
        max_fields: The most fields of a large message, those of nested messages included.
    """

    def __init__(self, calls: OpenCalls, *, max_fields: int) -> None:
        super().__init__()
        self._calls = calls
        self._max_fields = max_fields

    def wrap(self, handler: Any, method: str) -> Any:
        """Return a handler that reads and answers in place of gRPC."""
        answer = _Method(handler, method, self._calls, self._max_fields).answer
        return make_reading_handler(handler, answer)


class _Method:
    """One method. Every call of it gets a response or a status."""

    def __init__(self, handler: Any, method: str, calls: OpenCalls, max_fields: int) -> None:
        settings = calls.limits.settings
        self._behavior = behavior_of(handler)
        self._is_generator = inspect.isasyncgenfunction(self._behavior)
        self._takes_stream = handler.request_streaming
        self._returns_stream = handler.response_streaming
        self._serialize = serializer_of(handler)
        self._takes_names = method.startswith(_NAMING)
        self._needs_place = method not in _PROBES
        self._need = need_of(method)
        self._reads_texts = not self._takes_names and self._need.runs_model
        self._name = method
        self._calls = calls
        self._parser = RequestParser(
            deserialize=bound_fields(handler.request_deserializer or bytes, max_fields),
            method=method,
            max_bytes=_NAMING_BYTES_MAX if self._takes_names else math.inf,
            # Other streams are `BidiStream`s, which check this themselves.
            idle_timeout_s=settings.stream_idle_timeout_s
            if self._is_generator or not self._returns_stream
            else math.inf,
        )

    async def answer(self, _: Any, context: Any) -> bytes | None:
        """Answer one call; gRPC calls this."""
        failure: EngineError | None = None
        call = self._calls.open(context, CallRecord.of_grpc(self._name))
        try:
            return await self._serve(call, context)
        except EngineError as error:
            failure = error
            if call.request_id and "incident" in error.metadata:
                # The engine logged it, and does not know the call.
                fields = {"method": self._name, **error.metadata, "request_id": call.request_id}
                _logger.error("call failed", extra=fields)  # noqa: TRY400 - it was logged
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # A write failed: the client has left.
            call.record.leave(context.time_remaining())
        except asyncio.CancelledError:
            # gRPC cancels the task of a call that the client or the deadline ended. Any other
            # cancellation came out of something that the handler awaited.
            if is_cancelled():
                call.record.leave(context.time_remaining())
                raise
            failure = stray_cancellation(self._name)
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            failure = EngineError.fault()
            log_fault(error, failure, method=self._name)
        # Outside the block: else the AbortError would hold this exception and its frames.
        if failure is not None:
            forget_frames(failure)
            with contextlib.suppress(grpc.aio.InternalError):
                await call.abort(failure)
        await call.wait_for_cancellation()
        return None

    async def _serve(self, call: OpenCall, context: Any) -> bytes | None:
        """Read the request and run the handler."""
        check_metadata_size(call.metadata)
        await self._calls.admit(call, self._need)
        if self._needs_place:
            self._calls.take_place(call)
        if self._takes_names:
            call.use_small_messages()
        if self._takes_stream:
            await self._calls.wait_for_request(call, self._need, reads_texts=self._reads_texts)
        else:
            self._calls.count_request(call, self._need, reads_texts=self._reads_texts)
        # Nothing here references a request while the handler works on it.
        if self._takes_stream:
            answering = self._behavior(RequestStream(call, self._parser), context)
        else:
            request = await read_single(call, self._parser)
            if self._takes_names:
                # A health watch lasts for hours, and keeps no more than a name.
                call.release_unary_request()
            answering = self._behavior(request, context)
            del request
        if self._is_generator:
            await write_all(answering, call)
            response = None
        else:
            response = await answering
        if self._returns_stream:
            call.tell_rates()
            return None
        data = self._serialize(response)
        call.begin_unary_response(len(data))
        return data


def log_fault(
    error: Exception, fault: EngineError, *, method: str, id_field: Mapping[str, str] | None = None
) -> None:
    """Log where an exception came from, without its message, which may contain a text.

    Args:
        error: The exception.
        fault: What the caller gets.
        method: The method.
        id_field: The log field with the request id, outside of the call's own tasks.
    """
    fields = {"method": method, **fault.log_fields(error), **(id_field or request_id_field())}
    _logger.error("unexpected exception", extra=fields)


def is_cancelled() -> bool:
    """Return whether the running task has been cancelled.

    A cancelled task keeps its exception, and so the frames that the exception passed through:
    none of them may reference the task.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def stray_cancellation(method: str) -> EngineError:
    """Return the error for a cancellation that neither the caller nor the deadline caused."""
    _logger.warning("stray cancellation", extra={"method": method, **request_id_field()})
    return BackendUnavailableError("the work was cancelled; try again")
