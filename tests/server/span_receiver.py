"""The receiving end of OTLP over gRPC."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@asynccontextmanager
async def receiving_spans(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """Let servers of this process export to a list of messages, in wire form."""
    exports: list[bytes] = []

    async def export(request: bytes, _context: Any) -> bytes:
        exports.append(request)
        return b""

    server = grpc.aio.server()
    service, _, method = _EXPORT[1:].partition("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield exports
    finally:
        await server.stop(None)


def read_spans(exports: Sequence[bytes]) -> Mapping[str, Mapping[str, str | int]]:
    """Return the attributes of the span of each RPC by its name; one call of each RPC."""
    spans = [one for one in all_spans(exports) if one.kind == trace_pb2.Span.SPAN_KIND_SERVER]
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: attributes_of(span) for span in spans}


def all_spans(exports: Sequence[bytes]) -> list[trace_pb2.Span]:
    """Return the spans of all kinds, in the order of their ends."""
    return [
        span
        for export in exports
        for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(
            export
        ).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(span: trace_pb2.Span) -> dict[str, str | int]:
    """Return the attributes of a span; lists as words with commas."""
    return {one.key: _value(one.value) for one in span.attributes}


def _value(value: common_pb2.AnyValue) -> str | int:
    if value.HasField("array_value"):
        return ",".join(one.string_value for one in value.array_value.values)
    return value.int_value if value.HasField("int_value") else value.string_value
