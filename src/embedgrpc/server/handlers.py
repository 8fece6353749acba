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


def make_handler(handler: Any, behavior: Any, deserializer: Any) -> Any:
    """Makes a handler of the same call shape with another function and deserializer.

    The function may answer with a message, or with one that is serialised already.
    """
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    serialize = handler.response_serializer

    def serialize_unless_done(response: Any) -> Any:
        return response if isinstance(response, bytes) else serialize(response)

    return make(behavior, deserializer, serialize_unless_done)


async def write_all(responses: AsyncGenerator[Any], context: Any) -> None:
    """Turns a generator of responses into writes.

    A generator left suspended at a `yield` by a cancelled call is closed later and by another
    task; this one is closed at once, in the call's own.
    """
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
