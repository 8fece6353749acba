import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry import propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.telemetry.batch_tracing import BatchTracer
from embedgrpc.server.telemetry.tracing import (
    Attribute,
    TracingInterceptor,
    current_context,
    describe_call,
    peer_attributes,
)

SERVICE = "test.v1.Shapes"
CANARY = b"canary-4711"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class _SpanQueue(SpanExporter):
    """Passes each ended span to the test, which awaits it."""

    def __init__(self) -> None:
        self.spans: asyncio.Queue[ReadableSpan] = asyncio.Queue()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self.spans.put_nowait(span)
        return SpanExportResult.SUCCESS

    async def next(self) -> ReadableSpan:
        return await self.spans.get()


class _Shapes:
    """A service of bytes with every call shape and every way to end a call."""

    def __init__(self) -> None:
        self.contexts: list[SpanContext | None] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.together = asyncio.Barrier(2)

    async def answer(self, request: bytes, _context: Any) -> bytes:
        self.contexts.append(current_context())
        describe_call(operation="embeddings", request_model="m", dimensions=4, input_tokens=9)
        return request

    async def abort(self, request: bytes, context: Any) -> bytes:
        code = grpc.StatusCode[request.decode().partition(" ")[0]]
        await context.abort(code, f"about {request!r}")
        raise AssertionError("abort raises")

    async def set_code(self, request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return request

    async def fail(self, request: bytes, _context: Any) -> bytes:
        raise LookupError(request)

    async def hang(self, request: bytes, _context: Any) -> bytes:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        return request

    async def meet(self, _request: bytes, _context: Any) -> bytes:
        await self.together.wait()
        seen = current_context()
        return f"{seen.span_id:x}".encode() if seen else b""

    async def generate(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            self.contexts.append(current_context())
            yield request

    async def generate_and_fail(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield request
        raise LookupError(request)

    async def generate_without_end(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                self.entered.set()
                yield bytes(1 << 20)
        finally:
            self.left.set()

    async def write(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            self.contexts.append(current_context())
            await context.write(request)
        describe_call(input_tokens=5)

    async def echo(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def collect(self, requests: AsyncIterator[bytes], _context: Any) -> bytes:
        return b"".join([request async for request in requests])

    def handler(self) -> grpc.GenericRpcHandler:
        unary, server = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        client, both = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Answer": unary(self.answer),
                "Abort": unary(self.abort),
                "SetCode": unary(self.set_code),
                "Fail": unary(self.fail),
                "Hang": unary(self.hang),
                "Meet": unary(self.meet),
                "Generate": server(self.generate),
                "GenerateAndFail": server(self.generate_and_fail),
                "GenerateWithoutEnd": server(self.generate_without_end),
                "Write": both(self.write),
                "Echo": both(self.echo),
                "Collect": client(self.collect),
            },
        )


class _Bench:
    """A traced server on a socket, its client, and its spans."""

    def __init__(self, channel: grpc.aio.Channel, shapes: _Shapes, queue: _SpanQueue) -> None:
        self.channel = channel
        # Without serializers the stubs give messages the type Never.
        self._channel: Any = channel
        self.shapes = shapes
        self.queue = queue

    def unary(self, method: str, request: bytes, **options: Any) -> Any:
        return self._channel.unary_unary(f"/{SERVICE}/{method}")(request, **options)

    def server_stream(self, method: str, request: bytes) -> Any:
        return self._channel.unary_stream(f"/{SERVICE}/{method}")(request)

    def client_stream(self, method: str, requests: list[bytes]) -> Any:
        return self._channel.stream_unary(f"/{SERVICE}/{method}")(iter(requests))

    def both_streams(self, method: str, requests: list[bytes]) -> Any:
        return self._channel.stream_stream(f"/{SERVICE}/{method}")(iter(requests))

    async def span(self) -> ReadableSpan:
        return await self.queue.next()


@pytest.fixture
async def bench() -> AsyncIterator[_Bench]:
    """A traced server on a free port."""
    async with _serve() as made:
        yield made


@asynccontextmanager
async def _serve(address: str = "127.0.0.1:0") -> AsyncIterator[_Bench]:
    queue, shapes = _SpanQueue(), _Shapes()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(queue))
    interceptor = TracingInterceptor(provider.get_tracer("test"))
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers((shapes.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port(address)
    await server.start()
    target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(target) as channel:
            yield _Bench(channel, shapes, queue)
    finally:
        await server.stop(None)
        provider.shutdown()


async def _drain(stream: Any) -> list[bytes]:
    return [message async for message in stream]


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_unary_call_gets_a_server_span(bench: _Bench) -> None:
    """The span has the names, the peer, the status, and the attributes that the service added."""
    assert await bench.unary("Answer", b"x") == b"x"
    span = await bench.span()
    assert span.name == f"{SERVICE}/Answer"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    found = _attributes(span)
    assert found.pop("network.peer.port") > 0
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/Answer",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embedgrpc",
        "gen_ai.request.model": "m",
        "gen_ai.embeddings.dimension.count": 4,
        "gen_ai.usage.input_tokens": 9,
    }
    assert [span.context] == bench.shapes.contexts


async def test_a_server_stream_by_a_generator_keeps_its_span_current(bench: _Bench) -> None:
    """Each message of a generator is made in the span of the call."""
    assert await _drain(bench.server_stream("Generate", b"x")) == [b"x"] * 3
    span = await bench.span()
    assert _attributes(span)["rpc.response.status_code"] == "OK"
    assert bench.shapes.contexts == [span.context] * 3


async def test_a_stream_by_a_coroutine_may_read_and_write(bench: _Bench) -> None:
    """A bidirectional handler that uses `context.read` and `context.write` is traced."""
    call = bench.both_streams("Write", [b"a", b"b"])
    assert await _drain(call) == [b"a", b"b"]
    span = await bench.span()
    assert span.name == f"{SERVICE}/Write"
    assert _attributes(span)["rpc.response.status_code"] == "OK"
    assert _attributes(span)["gen_ai.usage.input_tokens"] == 5
    assert bench.shapes.contexts == [span.context] * 2


async def test_streams_of_requests_are_traced(bench: _Bench) -> None:
    """A bidirectional generator and a client stream return their answers and are traced."""
    echoed = await _drain(bench.both_streams("Echo", [b"a", b"b"]))
    assert echoed == [b"a", b"b"]
    assert await bench.client_stream("Collect", [b"a", b"b"]) == b"ab"
    names = [(await bench.span()).name for _ in range(2)]
    assert names == [f"{SERVICE}/Echo", f"{SERVICE}/Collect"]


FAULTS = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
async def test_an_abort_reaches_the_client_and_the_span(
    bench: _Bench, code: grpc.StatusCode
) -> None:
    """An aborted call keeps its code and details; only a fault of the server is an ERROR."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.unary("Abort", code.name.encode())
    assert caught.value.code() is code
    assert caught.value.details() == f"about {code.name.encode()!r}"
    span = await bench.span()
    assert _attributes(span)["rpc.response.status_code"] == code.name
    faulty = code.name in FAULTS
    assert span.status.status_code is (StatusCode.ERROR if faulty else StatusCode.UNSET)
    assert _attributes(span).get("error.type") == (code.name if faulty else None)
    assert not span.events


async def test_a_code_that_was_set_before_a_plain_return_is_recorded(bench: _Bench) -> None:
    """A code from `context.set_code`, followed by a return, is recorded."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.unary("SetCode", b"x")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert _attributes(await bench.span())["rpc.response.status_code"] == "NOT_FOUND"


@pytest.mark.parametrize("method", ["Fail", "GenerateAndFail"])
async def test_an_exception_is_unknown_and_named_by_its_class(bench: _Bench, method: str) -> None:
    """The span of a handler that raises has UNKNOWN, ERROR and the class of the exception."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _drain(bench.server_stream(method, b"x"))
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    span = await bench.span()
    assert _attributes(span)["rpc.response.status_code"] == "UNKNOWN"
    assert _attributes(span)["error.type"] == "LookupError"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert not span.events


async def test_a_cancelled_unary_call_is_cancelled_in_the_handler_and_in_the_span(
    bench: _Bench,
) -> None:
    """The handler is cancelled, and the span has CANCELLED, which is no error."""
    call = bench.unary("Hang", b"x")
    waiting = asyncio.ensure_future(call)
    await bench.shapes.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    span = await bench.span()
    assert bench.shapes.left.is_set()
    assert _attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_cancelled_generator_is_closed_at_once(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A generator that waits for a slow reader is closed before its span ends, in its context."""
    caplog.set_level(logging.DEBUG, "opentelemetry")
    call = bench.server_stream("GenerateWithoutEnd", b"x")
    await bench.shapes.entered.wait()
    call.cancel()
    span = await bench.span()
    assert bench.shapes.left.is_set()
    assert _attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_a_passed_deadline_ends_the_span(bench: _Bench) -> None:
    """The handler of a call whose deadline passes is cancelled, and its span ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.unary("Hang", b"x", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert _attributes(await bench.span())["rpc.response.status_code"] == "CANCELLED"


async def test_the_trace_of_the_caller_is_continued(bench: _Bench) -> None:
    """`traceparent` and `tracestate` in the metadata become the parent of the span."""
    metadata = (
        ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),
        ("tracestate", "vendor=value"),
        ("binary-bin", b"\x00\xff"),
    )
    await bench.unary("Answer", b"x", metadata=metadata)
    span = await bench.span()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.parent.is_remote
    assert span.context is not None
    assert span.context.trace_state.get("vendor") == "value"


async def test_an_unsampled_caller_stays_unsampled(bench: _Bench) -> None:
    """A call in an unsampled trace has no span and no context to link to."""
    metadata = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),)
    assert await bench.unary("Answer", b"x", metadata=metadata) == b"x"
    assert bench.shapes.contexts == [None]
    assert bench.queue.spans.empty()


async def test_a_broken_traceparent_starts_a_new_trace(bench: _Bench) -> None:
    """Malformed trace metadata does not make the call fail."""
    metadata = (("traceparent", "00-zzz"), ("traceparent", "?"))
    assert await bench.unary("Answer", b"x", metadata=metadata) == b"x"
    assert (await bench.span()).parent is None


async def test_the_propagator_of_the_process_decides(bench: _Bench) -> None:
    """Without a propagator (`OTEL_PROPAGATORS=none`) a `traceparent` is ignored."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([]))
    try:
        metadata = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
        await bench.unary("Answer", b"x", metadata=metadata)
    finally:
        propagate.set_global_textmap(before)
    assert (await bench.span()).parent is None


async def test_calls_at_the_same_time_do_not_share_a_span(bench: _Bench) -> None:
    """Two calls whose handlers run at the same time each have their own span."""
    seen = await asyncio.gather(bench.unary("Meet", b"x"), bench.unary("Meet", b"x"))
    spans = [await bench.span() for _ in range(2)]
    assert {f"{span.context.span_id:x}".encode() for span in spans if span.context} == set(seen)
    assert len(set(seen)) == 2


async def test_health_checks_are_not_traced(bench: _Bench) -> None:
    """A health check leaves no span, nor does an unknown method."""
    stub = health_pb2_grpc.HealthStub(bench.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.unary("NoSuchMethod", b"x")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await bench.unary("Answer", b"x")
    assert (await bench.span()).name == f"{SERVICE}/Answer"
    assert bench.queue.spans.empty()


async def test_no_span_contains_what_was_sent(bench: _Bench) -> None:
    """No span contains a request, the details of an abort, or the message of an exception."""
    await bench.unary("Answer", CANARY)
    await _drain(bench.server_stream("Generate", CANARY))
    await _drain(bench.both_streams("Write", [CANARY]))
    for method, request in (
        ("Fail", CANARY),
        ("Abort", b"INTERNAL " + CANARY),
        ("GenerateAndFail", CANARY),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _drain(bench.server_stream(method, request))
        assert CANARY.decode() in str(caught.value.details())
    spans = [await bench.span() for _ in range(6)]
    assert len({span.name for span in spans}) == 6
    assert not [span.name for span in spans if CANARY.decode() in span.to_json()]


async def test_a_call_over_a_unix_socket_is_traced(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The span of a peer without a name has no peer attributes."""
    socket = tmp_path_factory.mktemp("s") / "t.sock"
    async with _serve(f"unix:{socket}") as bench:
        assert await bench.unary("Answer", b"x") == b"x"
        found = _attributes(await bench.span())
        assert found["rpc.response.status_code"] == "OK"
        assert "network.peer.port" not in found


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.7:4711", {"network.peer.address": "10.0.0.7", "network.peer.port": 4711}),
        ("ipv6:%5B::1%5D:80", {"network.peer.address": "::1", "network.peer.port": 80}),
        ("unix:/run/e.sock", {"network.peer.address": "/run/e.sock"}),
        ("unix:", {}),
        ("unknown", {}),
        ("", {}),
    ],
)
def test_the_peer_is_split(peer: str, expected: dict[str, object]) -> None:
    """GRPC's peer names give address and port; those of other forms give nothing."""
    assert peer_attributes(peer) == expected


def test_the_names_are_those_of_the_registry() -> None:
    """Attribute names are those of OpenTelemetry's registry, except the listed ones."""
    registry = {
        value
        for module in (
            error_attributes,
            gen_ai_attributes,
            http_attributes,
            network_attributes,
            rpc_attributes,
            server_attributes,
            url_attributes,
        )
        for value in vars(module).values()
        if isinstance(value, str)
    }
    ours = {value for name, value in vars(Attribute).items() if name.isupper()}
    assert len(ours) == 26
    assert ours - registry == {
        "embedgrpc.batch.padded_tokens",
        "embedgrpc.batch.sequences",
        "embedgrpc.batch.tokens",
        # The registry has `http.request.header.<key>` and `rpc.request.metadata.<key>`.
        "http.request.header.x-request-id",
        "rpc.request.metadata.x-request-id",
    }


def test_outside_of_a_call_there_is_nothing_to_link_to_or_describe() -> None:
    """Without a recording span there is no context, and `describe_call` does nothing."""
    describe_call(operation="embeddings")
    assert current_context() is None


def _span_context(number: int) -> SpanContext:
    return SpanContext(
        trace_id=number, span_id=number, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


class _Batches:
    """A BatchTracer and its spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.batch_tracer = BatchTracer(self.tracer)

    def finish(self, contexts: Sequence[object], error: str = "") -> None:
        self.batch_tracer.batch_finished(
            BatchReport(
                model="mini",
                started_ns=1_000,
                finished_ns=5_000,
                work_class=WorkClass.INTERACTIVE,
                sequences=3,
                shared=0,
                tokens=20,
                shared_tokens=0,
                padded_tokens=24,
                failed_sequences=0,
                traces=contexts,
                error=error,
            )
        )

    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


def test_a_batch_is_linked_to_each_of_its_calls_once() -> None:
    """Several sequences of a call make one link; those of untraced calls make none."""
    batches = _Batches()
    batches.finish([_span_context(1), None, _span_context(2), _span_context(1)])
    (span,) = batches.spans()
    assert span.name == "batch mini"
    assert span.kind is SpanKind.INTERNAL
    assert (span.start_time, span.end_time) == (1_000, 5_000)
    assert [link.context for link in span.links] == [_span_context(1), _span_context(2)]
    assert _attributes(span) == {
        "gen_ai.request.model": "mini",
        "embedgrpc.batch.sequences": 3,
        "embedgrpc.batch.tokens": 20,
        "embedgrpc.batch.padded_tokens": 24,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_failed_batch_has_its_reason() -> None:
    """The span of a failed batch is an ERROR with the reason."""
    batches = _Batches()
    batches.finish([_span_context(1)], error="BackendFailedError")
    (span,) = batches.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert _attributes(span)["error.type"] == "BackendFailedError"


def test_a_batch_without_traced_calls_leaves_no_span() -> None:
    """Batches of warm-up and of unsampled calls are not traced."""
    batches = _Batches()
    batches.finish([None, None])
    batches.finish([])
    assert batches.spans() == ()


def test_a_batch_is_a_child_of_no_call() -> None:
    """The current span at the end of a batch does not become its parent."""
    batches = _Batches()
    with batches.tracer.start_as_current_span("call") as running:
        batches.finish([running.get_span_context()])
    batch, call = batches.spans()
    assert batch.parent is None
    assert [link.context for link in batch.links] == [call.context]


def test_lanes_may_finish_batches_at_once() -> None:
    """Batches that end on several threads at the same time all leave their spans."""
    batches = _Batches()
    with ThreadPoolExecutor(8) as lanes:
        done = [lanes.submit(batches.finish, [_span_context(i + 1)]) for i in range(200)]
    assert all(future.exception() is None for future in done)
    linked = {link.context.trace_id for span in batches.spans() for link in span.links}
    assert linked == set(range(1, 201))


async def test_a_batch_is_linked_to_a_call_over_the_wire(bench: _Bench) -> None:
    """The result of `current_context` in a handler links a later batch to that call's span."""
    await bench.unary("Answer", b"x")
    call = await bench.span()
    batches = _Batches()
    now_ns = time.time_ns()
    await asyncio.to_thread(batches.finish, bench.shapes.contexts)
    (batch,) = batches.spans()
    assert batch.links[0].context == call.context
    assert call.end_time is not None
    assert call.end_time <= now_ns
    assert trace.get_current_span() is trace.INVALID_SPAN
