import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.telemetry.trace_export import TraceExport, configure_tracing
from embedgrpc.server.telemetry.tracing import current_context

Export = trace_service_pb2.ExportTraceServiceRequest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    # The receivers are on this machine; a proxy could not reach them.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class _TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    """A receiver of OTLP over gRPC."""

    def __init__(self, exports: "Queue[Export]") -> None:
        self._exports = exports

    async def Export(self, request: Export, _context: Any) -> Any:  # noqa: N802  # the RPC's name
        self._exports.put(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def _grpc_receiver() -> AsyncIterator[tuple[str, "Queue[Export]"]]:
    exports: Queue[Export] = Queue()
    server = grpc.aio.server()
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(_TraceService(exports), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}", exports
    finally:
        await server.stop(None)


@asynccontextmanager
async def _http_receiver() -> AsyncIterator[tuple[str, "Queue[Export]"]]:
    exports: Queue[Export] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Accept an export at the path that OTLP specifies, and no other."""
            body = self.rfile.read(int(self.headers["content-length"]))
            found = self.path == "/v1/traces"
            if found:
                exports.put(Export.FromString(body))
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", exports
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


async def _call_and_run_a_batch(telemetry: TraceExport) -> None:
    """Serve one call with the interceptor, and report its batch."""
    contexts: list[object] = []

    async def answer(request: bytes, _context: Any) -> bytes:
        contexts.append(current_context())
        return request

    server = grpc.aio.server(interceptors=[telemetry.interceptor()])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.v1.Shapes", {"Answer": grpc.unary_unary_rpc_method_handler(answer)}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/test.v1.Shapes/Answer")
        assert await call(b"x") == b"x"
    await server.stop(None)
    telemetry.batch_tracer().batch_finished(
        BatchReport(
            model="mini",
            started_ns=1_000,
            finished_ns=5_000,
            work_class=WorkClass.INTERACTIVE,
            sequences=1,
            shared=0,
            tokens=3,
            shared_tokens=0,
            padded_tokens=3,
            failed_sequences=0,
            traces=contexts,
            error="",
        )
    )


@pytest.mark.parametrize(
    ("protocol", "receiver"),
    [("grpc", _grpc_receiver), ("http/protobuf", _http_receiver), ("", _http_receiver)],
)
async def test_spans_arrive_at_a_collector(
    protocol: str, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shutdown exports both spans, their link and the resource, over the given protocol."""
    async with receiver() as (endpoint, exports):
        # So long that only the shutdown can export them.
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        telemetry = configure_tracing("1.2.3", os.environ)
        assert telemetry is not None
        await _call_and_run_a_batch(telemetry)
        assert exports.empty()
        assert await asyncio.to_thread(telemetry.shutdown)
        (export,) = [exports.get_nowait() for _ in range(exports.qsize())]
    (resource_spans,) = export.resource_spans
    resource = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
    assert resource["service.name"] == "embedgrpc"
    assert resource["service.version"] == "1.2.3"
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("embedgrpc", "1.2.3")
    call, batch = scope_spans.spans
    assert (call.name, call.kind) == ("test.v1.Shapes/Answer", trace_pb2.Span.SPAN_KIND_SERVER)
    assert (batch.name, batch.kind) == ("batch mini", trace_pb2.Span.SPAN_KIND_INTERNAL)
    assert [link.span_id for link in batch.links] == [call.span_id]


@contextmanager
def _telemetry(environ: dict[str, str]) -> Iterator[TraceExport]:
    telemetry = configure_tracing("1.2.3", environ)
    assert telemetry is not None
    try:
        yield telemetry
    finally:
        telemetry.shutdown()


def _exporters(telemetry: TraceExport) -> list[type]:
    processors: Any = telemetry._provider._active_span_processor._span_processors
    return [type(processor.span_exporter) for processor in processors]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "embedgrpc"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a,service.name=ours"}, "ours"),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, "mine"),
    ],
)
def test_the_service_can_be_named(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`OTEL_SERVICE_NAME` overrides `OTEL_RESOURCE_ATTRIBUTES`, which overrides the default."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with _telemetry({"OTEL_TRACES_EXPORTER": "console", **environ}) as telemetry:
        assert telemetry._provider.resource.attributes["service.name"] == expected


async def test_the_console_gets_spans(capsys: pytest.CaptureFixture[str]) -> None:
    """`OTEL_TRACES_EXPORTER=console` prints each span as JSON."""
    telemetry = configure_tracing("1.2.3", {"OTEL_TRACES_EXPORTER": "console"})
    assert telemetry is not None
    await _call_and_run_a_batch(telemetry)
    assert await asyncio.to_thread(telemetry.shutdown)
    decoder = json.JSONDecoder()
    printed = capsys.readouterr().out.strip()
    first, end = decoder.raw_decode(printed)
    second, _ = decoder.raw_decode(printed[end:].lstrip())
    assert [first["name"], second["name"]] == ["test.v1.Shapes/Answer", "batch mini"]


WITHOUT_TRACES: list[dict[str, str]] = [
    {},
    {"OTEL_TRACES_EXPORTER": "none"},
    {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    {"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    {"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"},
    {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "zipkin"},
    {"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke-signals"},
]


def test_without_tracing_the_sdk_is_not_imported() -> None:
    """Where no variable asks for traces, the SDK is not even imported."""
    program = (
        "import json, sys\n"
        "from embedgrpc.server.telemetry.trace_export import configure_tracing\n"
        "for environ in json.loads(sys.argv[1]):\n"
        "    assert configure_tracing('1.2.3', environ) is None, environ\n"
        "names = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto')\n"
        "print([name for name in sys.modules if name.startswith(names)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(WITHOUT_TRACES)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "OTLP"},
        {"OTEL_TRACES_EXPORTER": "console, otlp"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"},
    ],
)
def test_either_an_exporter_or_an_endpoint_asks_for_traces(environ: dict[str, str]) -> None:
    """Each standard variable that asks for OTLP traces works."""
    with _telemetry(environ) as telemetry:
        exporters = [kind.__name__ for kind in _exporters(telemetry)]
    assert "OTLPSpanExporter" in exporters
    assert len(exporters) == 1 + ("console" in environ.get("OTEL_TRACES_EXPORTER", ""))


@pytest.mark.parametrize(
    ("environ", "module"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "grpc"),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http",
        ),
        ({}, "http"),
    ],
)
def test_the_protocol_of_traces_overrides_the_general_one(
    environ: dict[str, str], module: str
) -> None:
    """First the variable for traces counts, then that for all signals, then http/protobuf."""
    with _telemetry({"OTEL_TRACES_EXPORTER": "otlp", **environ}) as telemetry:
        (exporter,) = _exporters(telemetry)
    assert exporter.__module__ == f"opentelemetry.exporter.otlp.proto.{module}.trace_exporter"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "otlp,zipkin"},
            "OTEL_TRACES_EXPORTER: 'zipkin' is not one of otlp, console, none",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not one of grpc, http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "GRPC"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'GRPC' is not one of grpc, http/protobuf",
        ),
    ],
)
def test_an_unknown_exporter_or_protocol_is_refused(environ: dict[str, str], message: str) -> None:
    """An unknown exporter or protocol is a ValueError that lists the known ones."""
    with pytest.raises(ValueError, match="is not one of") as caught:
        configure_tracing("1.2.3", environ)
    assert str(caught.value) == message


def test_a_variable_that_an_exporter_cannot_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any exception of an exporter for its own variables becomes a ValueError."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")
    with pytest.raises(ValueError, match=r"^OTLP exporter over grpc: .*zstd"):
        configure_tracing("1.2.3", os.environ)


async def test_a_collector_that_never_answers_costs_the_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The shutdown gives up in time, returns False and logs that."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        telemetry = configure_tracing("1.2.3", os.environ)
        assert telemetry is not None
        await _call_and_run_a_batch(telemetry)
        assert await asyncio.to_thread(telemetry.shutdown, 0.1) is False
    assert "telemetry not flushed in time" in caplog.messages
    for thread in threading.enumerate():
        if thread.name == "telemetry-shutdown":
            await asyncio.to_thread(thread.join)


class _BrokenProcessor(SpanProcessor):
    """A processor that fails to shut down."""

    def shutdown(self) -> None:
        raise OSError("disk full")


def test_a_shutdown_that_fails_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter's exception does not disturb the stop of the server."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(_BrokenProcessor())
    assert TraceExport(provider, "1.2.3").shutdown() is False
    assert "telemetry shutdown failed" in caplog.messages


async def test_servers_do_not_share_a_provider(capsys: pytest.CaptureFixture[str]) -> None:
    """After the shutdown of one export, another in the process still works."""
    first = configure_tracing("1", {"OTEL_TRACES_EXPORTER": "console"})
    second = configure_tracing("2", {"OTEL_TRACES_EXPORTER": "console"})
    assert first is not None
    assert second is not None
    assert first.shutdown()
    await _call_and_run_a_batch(second)
    assert await asyncio.to_thread(second.shutdown)
    assert capsys.readouterr().out.count('"service.version": "2"') == 2
