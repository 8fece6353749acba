"""What interceptors need to wrap a handler, whatever its call shape."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc

_MAKERS: Final[dict[tuple[bool, bool], Callable[..., Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behavior_of(handler: Any) -> Any:
    """Returns the function that answers the call."""
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def make_handler(handler: Any, behavior: Any) -> Any:
    """Make a handler of the same call shape with another coroutine function.

    The function may answer with a message, or with one that is serialised already.
    """
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(forgetting(behavior), handler.request_deserializer, serializer_of(handler))


def make_reading_handler(handler: Any, behavior: Any) -> Any:
    """Make a handler that reads the messages of its calls itself, in bytes, from the context.

    gRPC reads the message of a unary call before it asks the handler. It waits for one that never
    comes without a limit, and never answers a call that ends without one. On the wire a call
    with one message looks the same as a call with many.
    """
    make = _MAKERS[True, handler.response_streaming]
    return make(forgetting(behavior), None, serializer_of(handler))


def serializer_of(handler: Any) -> Callable[[Any], bytes]:
    """Return the function that serialises what a handler answers; bytes are serialised already."""
    serialize = handler.response_serializer

    def serialize_unless_done(response: Any) -> bytes:
        return response if isinstance(response, bytes) else serialize(response)

    return serialize_unless_done


def forgetting(behavior: Any) -> Any:
    """Wrap a coroutine function so that its failure does not keep the call in memory.

    gRPC keeps the exception of an aborted call with the call. Its traceback holds the frames that
    it came through, and these hold the call: a cycle that only the garbage collector would find,
    with the request in it.
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
    """Drop what an exception holds of the frames that it came through."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def write_all(responses: AsyncGenerator[Any], context: Any) -> None:
    """Turns a generator of responses into writes to a context, or what writes to one.

    A generator left suspended at a `yield` by a cancelled call is closed later and by another
    task; this one is closed at once, in the call's own.
    """
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
