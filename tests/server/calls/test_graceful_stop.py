import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.graceful_stop import HOLD_S_MAX, QUIET_S, ShutdownGate
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.process.server import Server
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.rankings import part, setup
from tests.server.service import PATIENCE_S, Client, Service, until
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING, Watcher
from tests.server.streams import Stream


async def _stop(server: Server) -> None:
    await server.drain()
    await server.__aexit__(None, None, None)


async def test_calls_in_flight_finish_and_new_ones_are_refused(
    serve: Serve, backend: HashBackend
) -> None:
    """A stop answers the calls that were accepted before it, and accepts no more."""
    service = await serve(backend=backend)
    await service.client.embed("warm up")
    backend.hold()
    running = asyncio.ensure_future(service.client.embed("running"))
    assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    waiting = asyncio.ensure_future(service.client.embed("waiting"))
    await until(lambda: service.admission().inputs == 2)
    watcher = Watcher(service.client, EMBEDDING)
    assert await watcher.next() == SERVING
    stopping = asyncio.ensure_future(_stop(service.server))
    assert await watcher.next() == NOT_SERVING
    assert (await failure_of(watcher.call.read())).reason == "SHUTTING_DOWN"
    async with asyncio.timeout(PATIENCE_S):
        while (failure := await _outcome(service)) is None:
            pass  # a call that came before the listener closed waits, and times out
    assert failure is grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()
    backend.release()
    answers = await asyncio.gather(running, waiting)
    assert all(len(answer.embeddings) == 1 for answer in answers)
    await stopping
    assert backend.closed.is_set()


async def _outcome(service: Service) -> grpc.StatusCode | None:
    """Return the status of a new call on a new connection; None if it was accepted."""
    client = Client(service.address)
    async with client.channel:
        failure = await failure_of(client.embed("new", timeout=0.5))
    return failure.code if failure.code is grpc.StatusCode.UNAVAILABLE else None


@pytest.mark.parametrize("order", [pb.RESULT_ORDER_INPUT, pb.RESULT_ORDER_COMPLETION])
async def test_a_stream_answers_every_input_that_it_read(
    serve: Serve, backend: HashBackend, order: pb.ResultOrder
) -> None:
    """After that its client gets SHUTTING_DOWN, and can resume elsewhere by id."""
    service = await serve(backend=backend)
    backend.hold()
    stream = await Stream.open(service.client, order=order)
    await stream.send(("a", "a"), ("b", "b"))
    await stream.send(("c", ""))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    await until(lambda: service.bidi._in_flight == (3 if order == pb.RESULT_ORDER_INPUT else 2))
    stopping = asyncio.ensure_future(_stop(service.server))
    await until(lambda: service.bidi._draining)
    backend.release()
    results = await stream.results(3)
    assert sorted(result.id for result in results) == ["a", "b", "c"]
    failure = await stream.failure()
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.reason == "SHUTTING_DOWN"
    await stopping


async def test_idle_streams_end_at_once(serve: Serve) -> None:
    """Streams that wait for their client, before the setup or after, do not hold up a stop."""
    service = await serve(shutdown_grace_s=3600, shutdown_timeout_s=3700)
    silent = Stream(service.client)
    await silent.call.wait_for_connection()
    opened = await Stream.open(service.client)
    used = await Stream.open(service.client)
    await used.send(("a", "a"))
    await used.results(1)
    ranking = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await ranking.wait_for_connection()
    await until(lambda: service.open_streams == 4)
    async with asyncio.timeout(PATIENCE_S):
        await _stop(service.server)
    for failure in (
        await silent.failure(),
        await opened.failure(),
        await used.failure(),
        await failure_of(ranking.read()),
    ):
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "SHUTTING_DOWN"


async def test_a_half_closed_stream_ends_with_ok(serve: Serve, backend: HashBackend) -> None:
    """A client that half-closed before the stop gets its answers and OK."""
    service = await serve(backend=backend)
    backend.hold()
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"))
    await stream.call.done_writing()
    await until(lambda: (reader := service.bidi._reader) and reader.done())
    stopping = asyncio.ensure_future(_stop(service.server))
    await until(lambda: service.server._open_streams._draining)
    backend.release()
    assert [result.id for result in await stream.rest()] == ["a"]
    assert await stream.call.code() is grpc.StatusCode.OK
    await stopping


async def test_a_rerank_stream_answers_every_query_that_it_read(
    serve: Serve, backend: HashBackend
) -> None:
    """The stream ends after every ranking that began."""
    service = await serve(backend=backend)
    backend.hold()
    stream = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await stream.write(setup())
    for number in range(3):
        await stream.write(part(str(number), "q", ["one", "two"]))
    assert (await stream.read()).WhichOneof("step") == "ready"
    await until(lambda: service.open_streams and service.bidi._in_flight == 6)
    stopping = asyncio.ensure_future(_stop(service.server))
    await until(lambda: service.bidi._draining)
    backend.release()
    answers = [await stream.read() for _ in range(3)]
    assert sorted(answer.result.id for answer in answers) == ["0", "1", "2"]
    assert all(len(answer.result.ranking.results) == 2 for answer in answers)
    assert (await failure_of(stream.read())).reason == "SHUTTING_DOWN"
    await stopping


async def test_a_stop_ends_when_its_grace_is_over(serve: Serve, backend: HashBackend) -> None:
    """Calls that do not finish in time are cancelled; the event loop goes on meanwhile."""
    service = await serve(backend=backend, shutdown_grace_s=0.1)
    backend.hold()
    stuck = asyncio.ensure_future(service.client.embed("stuck"))
    assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    stopping = asyncio.ensure_future(_stop(service.server))
    failure = await failure_of(stuck)
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    # The lane still runs its batch, and the event loop goes on.
    assert not backend.closed.is_set()
    assert not stopping.done()
    backend.release()
    await stopping
    assert backend.closed.is_set()


async def test_a_late_stream_is_drained() -> None:
    """A stream whose handler begins after the drain is drained, too."""
    streams = OpenStreams(max_age_s=PATIENCE_S)
    streams.drain()
    never: Any = _never()
    late: BidiStream[None] = BidiStream(None, never, idle_timeout_s=PATIENCE_S)
    with streams.watch(late):
        assert late._draining


class _FakeServer:
    """A fake of gRPC's server, which records the stop."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.grace_s = 0.0

    async def stop(self, grace_s: float) -> None:
        """Record the stop."""
        self.grace_s = grace_s
        self.stopped.set()


def _call(gate: ShutdownGate, behavior: Callable[..., Awaitable[str]]) -> "asyncio.Task[Any]":
    """Make a call that passes the gate, of a method with the name of `behavior`."""
    handler: Any = grpc.unary_unary_rpc_method_handler(behavior)

    async def find(details: Any) -> Any:
        del details
        return handler

    async def call() -> Any:
        details: Any = SimpleNamespace(method=behavior.__name__)
        found: Any = await gate.intercept_service(find, details)
        return await found.unary_unary(None, None)

    return asyncio.ensure_future(call())


async def test_the_gate_holds_everything_back_until_the_stop() -> None:
    """Responses, errors and new calls are held back, so that clients send no calls meanwhile.

    A call that arrives after the stop, before its client has read the GOAWAY, is CANCELLED.
    """
    gate, core, go = ShutdownGate(), _FakeServer(), asyncio.Event()
    ended: list[tuple[str, bool]] = []

    async def answered() -> str:
        await go.wait()
        return "answer"

    async def answer(request: None, context: None) -> str:
        del request, context
        return await answered()

    async def refuse(request: None, context: None) -> str:
        del request, context
        await answered()
        raise OverloadedError("full")

    async def new(request: None, context: None) -> str:
        del request, context
        ended.append(("begun", core.stopped.is_set()))
        return "new"

    def note(task: "asyncio.Task[Any]") -> None:
        ended.append((type(task.exception()).__name__, core.stopped.is_set()))

    calls = [_call(gate, answer), _call(gate, refuse)]
    await asyncio.sleep(0)
    server: Any = core
    stopping = asyncio.ensure_future(gate.stop(server, 1))
    await asyncio.sleep(0)
    calls.append(_call(gate, new))
    for call in calls:
        call.add_done_callback(note)
    go.set()
    await asyncio.gather(stopping, *calls, return_exceptions=True)
    assert core.grace_s == 1
    assert sorted(ended) == [
        ("NoneType", True),
        ("NoneType", True),
        ("OverloadedError", True),
        ("begun", True),
    ]


async def test_a_stop_waits_until_no_call_comes_but_not_forever() -> None:
    """While calls keep coming, the stop waits, but for half a second at most."""
    gate, core = ShutdownGate(), _FakeServer()
    server: Any = core
    calls: list[asyncio.Task[Any]] = []

    async def late(request: None, context: None) -> str:
        del request, context
        return "answer"

    loop = asyncio.get_running_loop()
    began = loop.time()
    stopping = asyncio.ensure_future(gate.stop(server, 1))
    while not core.stopped.is_set():
        calls.append(_call(gate, late))
        await asyncio.sleep(0.01)
    assert loop.time() - began >= HOLD_S_MAX
    await stopping
    assert set(await asyncio.gather(*calls)) == {"answer"}


async def test_a_stop_without_calls_is_soon() -> None:
    """The gate is closed for less than its limit. The shortest try counts: noise adds time."""
    loop = asyncio.get_running_loop()
    shortest_s = HOLD_S_MAX
    for _ in range(20):
        began = loop.time()
        server: Any = _FakeServer()
        await ShutdownGate().stop(server, 1)
        shortest_s = min(shortest_s, loop.time() - began)
        if shortest_s < HOLD_S_MAX / 2:
            break
    assert shortest_s < HOLD_S_MAX / 2


async def test_a_stop_waits_again_after_the_loop_was_held_up() -> None:
    """Calls may have arrived while the loop did not run: the quiet time begins anew."""
    gate, core = ShutdownGate(), _FakeServer()
    server: Any = core
    loop = asyncio.get_running_loop()
    stopping = asyncio.ensure_future(gate.stop(server, 1))
    await asyncio.sleep(0)
    time.sleep(0.15)  # noqa: ASYNC251 - holds up the loop
    began = loop.time()
    await core.stopped.wait()
    assert loop.time() - began >= QUIET_S
    await stopping


async def _never() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield
