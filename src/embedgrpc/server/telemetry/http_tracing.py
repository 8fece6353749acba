"""Gives each call over HTTP a span that continues the trace of its caller.

No attribute holds what a client is free to write, so there is no `url.path` but that of a known
route, no `url.query` and no `user_agent.original`.

Source: OpenTelemetry semantic conventions 1.44, HTTP spans.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from embedgrpc.server.rpc.request_id import find_request_id
from embedgrpc.server.telemetry.tracing import (
    Attribute,
    Metadata,
    caller_context,
    peer_attributes,
    running_in,
)

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(\d{1,5}))?")
_SERVER_FAULT_MIN: Final = 500


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a span says of a request.

    Attributes:
        method: Its method.
        route: The path of its route, such as `/v1/models/{id}`; empty if there is none.
        scheme: http or https.
        version: The version of HTTP, such as 1.1.
        host: The header `host`; empty if there is none.
        peer: The other end of the connection, as gRPC writes it.
        metadata: Its headers.
    """

    method: str
    route: str
    scheme: str
    version: str
    host: str
    peer: str
    metadata: Metadata


class HttpTracer:
    """Makes the spans of calls over HTTP."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(self, request: HttpRequest) -> Iterator[Span]:
        """Make the span of a call the current one until the block ends.

        A client that leaves is no error of the server: the span then has no status.
        """
        parent = caller_context(request.metadata)
        attributes = dict(_attributes(request))
        method = str(attributes[Attribute.HTTP_REQUEST_METHOD]).replace("_OTHER", "HTTP")
        span = self._tracer.start_span(
            f"{method} {request.route}".rstrip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        if span.is_recording() and (request_id := find_request_id(request.metadata)):
            span.set_attribute(Attribute.HTTP_REQUEST_HEADER_REQUEST_ID, (request_id,))
        with running_in(span, parent):
            try:
                yield span
            except asyncio.CancelledError as error:
                span.set_attribute(Attribute.ERROR_TYPE, type(error).__qualname__)
                raise
            finally:
                span.end()


def set_status(span: Span, status: int) -> None:
    """Record the status of the response. What the client did wrong is no error of the server."""
    span.set_attribute(Attribute.HTTP_RESPONSE_STATUS_CODE, status)
    if status >= _SERVER_FAULT_MIN:
        span.set_attribute(Attribute.ERROR_TYPE, str(status))
        span.set_status(Status(StatusCode.ERROR))


def _attributes(request: HttpRequest) -> Iterator[tuple[str, AttributeValue]]:
    method = request.method if request.method in _METHODS else "_OTHER"
    yield Attribute.HTTP_REQUEST_METHOD, method
    yield Attribute.URL_SCHEME, request.scheme
    yield Attribute.NETWORK_PROTOCOL_VERSION, request.version
    if request.route:
        yield Attribute.HTTP_ROUTE, request.route
        if "{" not in request.route:
            yield Attribute.URL_PATH, request.route
    if match := _HOST.fullmatch(request.host):
        yield Attribute.SERVER_ADDRESS, match[1].strip("[]")
        if match[2]:
            yield Attribute.SERVER_PORT, int(match[2])
    yield from peer_attributes(request.peer).items()
