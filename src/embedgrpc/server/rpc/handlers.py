"""Helps interceptors to wrap handlers of any call shape."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio

_MAKERS: Final[dict[tuple[bool, bool], Callable[..., Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class HandlerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of each method once: gRPC gives the same one for every call."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler of a call; gRPC calls this."""
        await self.arrive()
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = self._wrapped[method] = self.wrap(handler, method)
        return wrapped

    async def arrive(self) -> None:
        """Let a call pass, before its handler is found."""

    @abstractmethod
    def wrap(self, handler: Any, method: str) -> Any:
        """Return a handler in place of that of a method."""


class InterceptorChain(grpc.aio.ServerInterceptor):
    """Runs several interceptors as one: with each of its own, gRPC asks all of them at every call.

    Args:
        interceptors: The interceptors, the outermost first.
        gate: The one of them whose `arrive` calls have to pass.
    """

    def __init__(
        self, interceptors: Sequence[HandlerInterceptor], *, gate: HandlerInterceptor
    ) -> None:
        self._interceptors = interceptors
        self._gate = gate
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler of a call; gRPC calls this."""
        await self._gate.arrive()
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = await continuation(handler_call_details)
            if wrapped is None:
                return None
            for one in reversed(self._interceptors):
                wrapped = one.wrap(wrapped, method)
            self._wrapped[method] = wrapped
        return wrapped


def behavior_of(handler: Any) -> Any:
    """Return the function that answers the call."""
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def make_handler(handler: Any, behavior: Any, *, forgets: bool = True) -> Any:
    """Return a handler of the same call shape with another coroutine function.

    The function may return a message, or its serialised bytes.

    Args:
        handler: The handler.
        behavior: The function.
        forgets: Whether its exceptions forget their frames; see `forgetting`.
    """
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    behavior = forgetting(behavior) if forgets else behavior
    return make(behavior, handler.request_deserializer, serializer_of(handler))


def make_reading_handler(handler: Any, behavior: Any) -> Any:
    """Return a handler that reads the messages of its calls itself, in bytes, from the context.

    gRPC reads the message of a unary call before it runs the handler: it waits forever for one
    that never comes, and never answers a call that ends without one. On the wire, a call with one
    message looks like a call with many.
    """
    make = _MAKERS[True, handler.response_streaming]
    return make(forgetting(behavior), None, serializer_of(handler))


def serializer_of(handler: Any) -> Callable[[Any], bytes]:
    """Return a function that serialises responses, and leaves those in bytes as they are."""
    serialize = handler.response_serializer

    def serialize_unless_done(response: Any) -> bytes:
        return response if isinstance(response, bytes) else serialize(response)

    return serialize_unless_done


def forgetting(behavior: Any) -> Any:
    """Wrap a coroutine function so that its exception does not keep the call in memory.

    gRPC stores the exception of an aborted call in the call. Its traceback references the frames
    that it passed through, and these reference the call: a cycle with the request in it, which
    only the garbage collector would free.
    """

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await behavior(request, context)
        except BaseException as error:
            request = context = None
            forget_frames(error)
            raise

    return answer


def forget_frames(error: BaseException) -> None:
    """Drop the references of an exception to the frames that it passed through."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def write_all(responses: AsyncGenerator[Any], context: Any) -> None:
    """Write the responses of a generator to a context.

    Else a generator that a cancelled call leaves suspended at a `yield` would be closed later, by
    another task; this closes it at once, in the task of the call.
    """
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
