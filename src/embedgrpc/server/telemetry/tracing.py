"""Gives each call a span that continues the trace of its caller.

No span contains a text, a vector or the message of an exception. The propagator is the process's
own, so `OTEL_PROPAGATORS` works as everywhere. The caller passes the tracer: nothing here reads
settings or knows exporters.

Source: OpenTelemetry semantic conventions 1.44, RPC, gRPC and generative AI; names that the
registry lacks begin with `embedgrpc.`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from embedgrpc.libraries.propagation import propagate
from embedgrpc.server.rpc.handlers import behavior_of, make_handler, write_all
from embedgrpc.server.rpc.request_id import REQUEST_ID_KEY, find_request_id
from embedgrpc.server.telemetry.call_record import current_record

Metadata = Iterable[tuple[str, str | bytes]]


class Attribute:
    """The names of all span attributes of this server."""

    ERROR_TYPE: Final = "error.type"
    HTTP_REQUEST_HEADER_REQUEST_ID: Final = f"http.request.header.{REQUEST_ID_KEY}"
    HTTP_REQUEST_METHOD: Final = "http.request.method"
    HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
    HTTP_ROUTE: Final = "http.route"
    NETWORK_PEER_ADDRESS: Final = "network.peer.address"
    NETWORK_PEER_PORT: Final = "network.peer.port"
    NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
    RPC_METHOD: Final = "rpc.method"
    RPC_REQUEST_METADATA_REQUEST_ID: Final = f"rpc.request.metadata.{REQUEST_ID_KEY}"
    RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"
    RPC_SYSTEM_NAME: Final = "rpc.system.name"
    SERVER_ADDRESS: Final = "server.address"
    SERVER_PORT: Final = "server.port"
    URL_PATH: Final = "url.path"
    URL_SCHEME: Final = "url.scheme"

    GEN_AI_EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
    GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
    GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
    GEN_AI_REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
    GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
    GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
    GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"

    BATCH_PADDED_TOKENS: Final = "embedgrpc.batch.padded_tokens"
    BATCH_SEQUENCES: Final = "embedgrpc.batch.sequences"
    BATCH_TOKENS: Final = "embedgrpc.batch.tokens"


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call a SERVER span that continues the caller's trace.

    It must be the outermost interceptor, to see the status that the others set. gRPC's own
    services (health, reflection) and unknown methods leave no spans. A handler is traced if it is
    a coroutine function or an async generator function.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call; gRPC calls this."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        if handler is None or method.startswith("grpc."):
            return handler
        behavior = behavior_of(handler)
        generates = inspect.isasyncgenfunction(behavior)
        if not generates and not inspect.iscoroutinefunction(behavior):
            return handler
        metadata = tuple(handler_call_details.invocation_metadata or ())

        async def answer(request: Any, context: Any) -> Any:
            with self._span(method, metadata, context):
                if generates:
                    return await write_all(behavior(request, context), context)
                return await behavior(request, context)

        return make_handler(handler, answer)

    @contextmanager
    def _span(self, method: str, metadata: Metadata, context: Any) -> Iterator[None]:
        parent = caller_context(metadata)
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                Attribute.RPC_SYSTEM_NAME: "grpc",
                Attribute.RPC_METHOD: method,
                **peer_attributes(context.peer()),
            },
        )
        if span.is_recording() and (request_id := find_request_id(metadata)):
            span.set_attribute(Attribute.RPC_REQUEST_METADATA_REQUEST_ID, (request_id,))
        with running_in(span, parent):
            try:
                yield
            except BaseException as error:
                _set_outcome(span, context, error)
                raise
            else:
                _set_outcome(span, context, None)
            finally:
                span.end()


# OpenTelemetry's own way to the current span takes half a microsecond, and a call asks for it five
# times.
_current: Final[ContextVar[Span]] = ContextVar("span", default=trace.INVALID_SPAN)


@contextmanager
def running_in(span: Span, parent: Context) -> Iterator[None]:
    """Make a span that of the running call inside the `with` block, here and for OpenTelemetry."""
    token, own = attach(trace.set_span_in_context(span, parent)), _current.set(span)
    try:
        yield
    finally:
        _current.reset(own)
        detach(token)


def describe_call(
    *,
    operation: str = "",
    request_model: str = "",
    response_model: str = "",
    dimensions: int = 0,
    encoding: str = "",
    input_tokens: int = 0,
) -> None:
    """Add attributes to the span of the running call, if there is one.

    May be called several times; empty and 0 leave an attribute as it is.

    Args:
        operation: "embeddings"; or "rerank" or "classify", for which the registry has no name.
        request_model: The model name in the request.
        response_model: The model that answers.
        dimensions: The length of the dense vectors.
        encoding: The encoding of vectors, such as "float32".
        input_tokens: How many more tokens the call has used.
    """
    record = current_record()
    if record is not None:
        record.tokens += input_tokens
        input_tokens = record.tokens
    span = _current.get()
    if not span.is_recording():
        return
    attributes: dict[str, AttributeValue] = {
        Attribute.GEN_AI_OPERATION_NAME: operation,
        Attribute.GEN_AI_PROVIDER_NAME: "embedgrpc",
        Attribute.GEN_AI_REQUEST_MODEL: request_model,
        Attribute.GEN_AI_RESPONSE_MODEL: response_model,
        Attribute.GEN_AI_EMBEDDINGS_DIMENSION_COUNT: dimensions,
        Attribute.GEN_AI_REQUEST_ENCODING_FORMATS: (encoding,) if encoding else (),
        Attribute.GEN_AI_USAGE_INPUT_TOKENS: input_tokens,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value})


def caller_context(metadata: Metadata) -> Context:
    """Return the context in which the span of a call begins: that of its caller."""
    return propagate.extract(metadata, context=Context(), getter=_METADATA_GETTER)


def current_context() -> SpanContext | None:
    """Return the context of the running call's span, for links; None where none is recorded."""
    span = _current.get()
    return span.get_span_context() if span.is_recording() else None


def forwarded_context() -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the running call's trace to other servers."""
    if not _current.get().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


class _MetadataGetter(Getter[Metadata]):
    """Reads propagation fields from gRPC metadata, whose keys are lower case and may repeat."""

    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        wanted = key.lower()
        return [
            value for name, value in carrier if name == wanted and isinstance(value, str)
        ] or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


_METADATA_GETTER: Final = _MetadataGetter()

_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

# The other codes stand for a mistake or a wish of the caller, not for an error of the server.
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def _set_outcome(span: Span, context: Any, error: BaseException | None) -> None:
    """Record the status that the client gets: one that was set takes precedence over the error."""
    # aio returns the code as a number, despite its annotation.
    number = context.code()
    code = number if isinstance(number, grpc.StatusCode) else _CODES[number or 0]
    error_type = ""
    if error is not None and code is grpc.StatusCode.OK:
        # Where the client has left, a write fails before gRPC reports the cancellation.
        if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.InternalError):
            code = grpc.StatusCode.CANCELLED
        else:
            code, error_type = grpc.StatusCode.UNKNOWN, type(error).__qualname__
    span.set_attribute(Attribute.RPC_RESPONSE_STATUS_CODE, code.name)
    if code in _SERVER_FAULTS:
        span.set_attribute(Attribute.ERROR_TYPE, error_type or code.name)
        span.set_status(Status(StatusCode.ERROR))


def peer_attributes(peer: str) -> dict[str, AttributeValue]:
    """Split gRPC's "ipv4:1.2.3.4:5", "ipv6:%5B::1%5D:5" or "unix:/path"; return {} for others."""
    kind, _, place = unquote(peer).partition(":")
    address, _, port = place.rpartition(":")
    if kind in {"ipv4", "ipv6"} and port.isdecimal():
        return {
            Attribute.NETWORK_PEER_ADDRESS: address.strip("[]"),
            Attribute.NETWORK_PEER_PORT: int(port),
        }
    return {Attribute.NETWORK_PEER_ADDRESS: place} if kind == "unix" and place else {}
