import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.calls.error_interceptor import ErrorInterceptor
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.rpc.errors import trailing_metadata
from embedgrpc.server.settings.settings import Settings
from tests.server.failures import Failure, failure_of
from tests.server.service import PATIENCE_S

CANARY = "canary-4711"
SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "StreamWrite")


class _Raising:
    """A service of every call shape that raises a given exception."""

    def __init__(self) -> None:
        self.error: BaseException = LookupError()

    async def unary(self, _request: Any, _context: Any) -> bytes:
        raise self.error

    async def generate(self, _request: Any, _context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise self.error

    # Streams are read to their end first: a call that ends while gRPC's client still sends from an
    # iterator has no details.
    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        await self.consume(requests, context)
        raise self.error

    async def exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield await self.consume(requests, context)
        raise self.error

    async def write(self, requests: AsyncIterator[bytes], context: Any) -> None:
        await context.write(await self.consume(requests, context))
        raise self.error

    async def consume(self, requests: AsyncIterator[bytes], _context: Any) -> bytes:
        return b"".join([request async for request in requests])


class _StrayCancellation:
    """A service that awaits a future which is cancelled elsewhere."""

    async def unary(self, _request: Any, _context: Any) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.cancel)
        return await future


@asynccontextmanager
async def _serving(methods: dict[str, Any]) -> AsyncIterator[Any]:
    interceptor = ErrorInterceptor(OpenCalls(Settings()), max_fields=10_000)
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Errors", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    # Wait for handlers that have not ended.
    await server.stop(PATIENCE_S)


async def _failure(channel: Any, shape: str) -> Failure:
    path = f"/test.Errors/{shape}"

    async def call() -> None:
        match shape:
            case "UnaryUnary":
                await channel.unary_unary(path)(b"", timeout=PATIENCE_S)
            case "UnaryStream":
                _ = [one async for one in channel.unary_stream(path)(b"", timeout=PATIENCE_S)]
            case "StreamUnary":
                await channel.stream_unary(path)(iter([b""]), timeout=PATIENCE_S)
            case _:
                stream = channel.stream_stream(path)(iter([b""]), timeout=PATIENCE_S)
                _ = [one async for one in stream]

    return await failure_of(call())


def _methods(service: _Raising) -> dict[str, Any]:
    return {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(service.unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(service.generate),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(service.collect),
        "StreamStream": grpc.stream_stream_rpc_method_handler(service.exchange),
        "StreamWrite": grpc.stream_stream_rpc_method_handler(service.write),
    }


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_exception_becomes_an_incident(
    shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets INTERNAL and the number of a log record, and nothing of the exception."""
    caplog.set_level(logging.DEBUG)
    service = _Raising()
    service.error = LookupError(CANARY)
    async with _serving(_methods(service)) as channel:
        failure = await _failure(channel, shape)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    incident = failure.metadata["incident"]
    assert incident in failure.details
    (record,) = [one for one in caplog.records if one.getMessage() == "unexpected exception"]
    assert record.__dict__["incident"] == incident
    assert record.__dict__["error"] == "LookupError"
    assert "test_error_interceptor.py" in record.__dict__["stack"]
    assert CANARY not in failure.details + failure.trailing
    assert not [one for one in caplog.records if CANARY in repr(one.__dict__)]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_engine_error_becomes_its_status(shape: str) -> None:
    """Code, details and retry header are sent for every call shape."""
    service = _Raising()
    service.error = OverloadedError("too much", retry_delay_s=1.5)
    async with _serving(_methods(service)) as channel:
        failure = await _failure(channel, shape)
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert (failure.retry_delay_s, failure.pushback_ms) == (1.5, "1500")


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_raised_cancellation_is_answered(shape: str) -> None:
    """A stray cancellation is UNAVAILABLE at once: the client does not hang."""
    service = _Raising()
    service.error = asyncio.CancelledError()
    async with _serving(_methods(service)) as channel:
        failure = await _failure(channel, shape)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")


async def test_a_cancelled_future_is_answered() -> None:
    """A future that is cancelled elsewhere ends the call: the client does not hang."""
    handler: Any = grpc.unary_unary_rpc_method_handler(_StrayCancellation().unary)
    async with _serving({"UnaryUnary": handler}) as channel:
        failure = await _failure(channel, "UnaryUnary")
    assert failure.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("delay_s", "pushback_ms"), [(0.0001, "1"), (0.0014, "1"), (2, "2000")])
def test_the_pushback_is_never_zero(delay_s: float, pushback_ms: str) -> None:
    """A short retry delay is a millisecond: 0 would be none."""
    metadata = dict(trailing_metadata(OverloadedError("full", retry_delay_s=delay_s)))
    assert metadata["grpc-retry-pushback-ms"] == pushback_ms


class _Flooding:
    """A service that writes to its client, and records how its handler ends."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[type[BaseException]] = asyncio.Queue()

    async def flood(self, _request: Any, context: Any) -> None:
        try:
            while True:
                await context.write(bytes(100_000))
        except BaseException as error:
            self.ended.put_nowait(type(error))
            raise


async def test_a_client_that_leaves_while_it_is_written_to_is_no_incident(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is logged, whether the cancellation comes before the failed write or after it."""
    caplog.set_level(logging.WARNING)
    service = _Flooding()
    handler: Any = grpc.unary_stream_rpc_method_handler(service.flood)
    async with _serving({"Flood": handler}) as channel:
        for number in range(100):
            call = channel.unary_stream("/test.Errors/Flood")(b"")
            for _ in range(number % 3):
                await call.read()
            await call.wait_for_connection()
            call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(100):
                await service.ended.get()
    assert not caplog.records


class _Late:
    """A service whose write fails before gRPC reports that its client has left."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    async def write(self, _request: Any, _context: Any) -> None:
        self.failed.set()
        raise grpc.aio.InternalError(CANARY)


async def test_a_write_that_fails_before_the_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failed write alone is no incident: the handler waits for the cancellation."""
    caplog.set_level(logging.WARNING)
    service = _Late()
    handler: Any = grpc.unary_stream_rpc_method_handler(service.write)
    async with _serving({"Late": handler}) as channel:
        call = channel.unary_stream("/test.Errors/Late")(b"")
        await service.failed.wait()
        call.cancel()
    assert not caplog.records


async def test_a_malformed_message_of_a_client_stream() -> None:
    """A client stream ends with INVALID_ARGUMENT at the malformed message."""

    def parse(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError(CANARY)
        return data

    handler: Any = grpc.stream_unary_rpc_method_handler(_Raising().consume, parse)
    async with _serving({"Collect": handler}) as channel:
        stub = channel.stream_unary("/test.Errors/Collect")
        assert await stub(iter([b"a", b"b"]), timeout=PATIENCE_S) == b"ab"
        failure = await failure_of(stub(iter([b"a", b"bad"]), timeout=PATIENCE_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.label == "MALFORMED_MESSAGE"
    assert CANARY not in failure.details + failure.trailing
