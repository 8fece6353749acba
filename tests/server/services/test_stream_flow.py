import asyncio
import gc
import itertools
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from embedgrpc.engine.pipeline import JobHandle
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.folder import properties
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources import source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend, vector_of
from tests.server.rankings import part, setup
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for, until
from tests.server.streams import Stream, batch

Watched = Callable[[Service], int]

WORDS = ("a", "the", "of", "and", "to", "in", "for", "is", "on", "that")


def _texts(count: int) -> list[str]:
    """Texts that all differ, of 1 to 20 words."""
    return [
        " ".join(WORDS[(number // 7 ** (place % 6)) % 10] for place in range(1 + number % 20))
        + f" {number}"
        for number in range(count)
    ]


def _expected(texts: list[str]) -> list[FloatArray]:
    """The vectors that the fake backend has for these texts."""
    files = source.resolve(str(FIXTURES / "bert-cls"))
    tokenizer = Tokenizer.load(properties.read(files))
    return [
        vector_of(tokenizer.build_sequence(ids, max_tokens=96, truncation=Truncation.END).input_ids)
        for ids in tokenizer.encode(texts)
    ]


@pytest.mark.parametrize("order", [pb.RESULT_ORDER_INPUT, pb.RESULT_ORDER_COMPLETION])
async def test_every_input_is_answered_once_and_with_its_own_vector(
    serve: Serve, backend: HashBackend, order: pb.ResultOrder
) -> None:
    """Thousands of inputs on several streams at once: none lost, none twice, none swapped."""
    service = await serve(
        backend=backend, lanes=2, max_stream_in_flight_inputs=256, max_queued_inputs=300
    )
    texts = _texts(2000)
    expected = dict(zip(map(str, range(len(texts))), _expected(texts), strict=True))

    async def run(offset: int) -> None:
        stream = await Stream.open(service.client, order=order)
        inputs = list(zip(expected, texts, strict=True))
        inputs = inputs[offset:] + inputs[:offset]

        async def write() -> None:
            for start in range(0, len(inputs), 50):
                await stream.send(*inputs[start : start + 50])
            await stream.call.done_writing()

        results, _ = await asyncio.gather(stream.rest(), write())
        assert await stream.call.code() is grpc.StatusCode.OK
        if order == pb.RESULT_ORDER_INPUT:
            assert [result.id for result in results] == [identifier for identifier, _ in inputs]
        assert len(results) == len(inputs)
        assert {result.id for result in results} == set(expected)
        for result in results:
            vector = np.array(result.embedding.dense.values, np.float32)
            np.testing.assert_array_equal(vector, expected[result.id])

    await asyncio.gather(run(0), run(700), run(1300))
    assert service.admission().inputs == 0
    await service.check_alive()


async def test_results_come_as_they_are_ready_in_completion_order(
    serve: Serve, backend: HashBackend
) -> None:
    """A result is sent as soon as it is ready, also before earlier ones."""
    service = await serve(backend=backend, batch_tokens=64)
    backend.hold()
    stream = await Stream.open(service.client, order=pb.RESULT_ORDER_COMPLETION)
    await stream.send(("first", "a"))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    # Both wait while the first is run, and do not fit into one batch.
    await stream.send(("long", "a " * 90))
    await stream.send(("short", ""))
    await until(lambda: service.admission().inputs == 2)
    (refused,) = await stream.results(1)
    assert refused.id == "short"
    backend.release()
    assert [result.id for result in await stream.results(2)] == ["first", "long"]
    assert await stream.end() == []


async def test_results_wait_for_earlier_ones_in_input_order(
    serve: Serve, backend: HashBackend
) -> None:
    """In input order, a result that is ready first waits for the earlier ones."""
    service = await serve(backend=backend)
    backend.hold()
    stream = await Stream.open(service.client)
    await stream.send(("first", "a"))
    await stream.send(("refused", ""))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    reading = asyncio.ensure_future(stream.results(2))
    await until(lambda: len(service.bidi._outbox) == 0 and service.open_streams == 1)
    assert not reading.done()
    backend.release()
    assert [result.id for result in await reading] == ["first", "refused"]
    assert await stream.end() == []


async def test_the_window_is_never_exceeded(serve: Serve, backend: HashBackend) -> None:
    """While no result is sent, the server reads no more inputs than the window allows."""
    service = await serve(
        backend=backend, max_stream_in_flight_inputs=32, max_stream_batch_inputs=8
    )
    before = backend.sequences
    backend.hold()
    stream = await Stream.open(service.client)
    writing = asyncio.ensure_future(_flood(stream, batches=100, inputs=8))
    await until(lambda: service.admission().inputs == 32)
    # The reader holds the next message, and waits for room.
    await until(lambda: not service.bidi._reading)
    assert service.bidi._in_flight == 32
    most = 0

    def watch(ids: IntArray) -> FloatArray:
        nonlocal most
        most = max(most, service.admission().inputs)
        return vector_of(ids)

    backend.answer = watch
    backend.release()
    await stream.results(800)
    await writing
    assert await stream.end() == []
    assert 1 <= most <= 32
    # Texts that are equal are run together.
    assert 1 <= backend.sequences - before <= 800


async def test_a_client_that_does_not_read_stops_being_read(
    serve: Serve, backend: HashBackend
) -> None:
    """The server buffers few results for a slow reader, and drops them when it leaves."""
    service = await serve(
        backend=backend, max_stream_in_flight_inputs=64, max_stream_batch_inputs=16
    )
    client = await service.connect(grpc__http2__bdp_probe=0)
    await client.embed("warm up")
    tasks = len(asyncio.all_tasks())
    before = backend.sequences
    stream = await Stream.open(client)
    # Long ids make long answers.
    writing = asyncio.ensure_future(_flood(stream, batches=2000, inputs=16, id_length=256))
    await until(lambda: service.open_streams)
    # Others are served, until one day nothing more is taken from this one between their calls.
    taken, still = -1, 0
    async with asyncio.timeout(PATIENCE_S):
        for calls in itertools.count(1):
            await service.client.embed("a plain call")
            now = backend.sequences - before - calls
            taken, still = now, still + 1 if now == taken else 0
            if still == 20:
                break
    bidi = service.bidi
    assert bidi._writing
    assert bidi._in_flight == 64
    assert len(bidi._outbox) <= 64
    assert taken < 16_000
    assert not writing.done()
    stream.call.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await until(lambda: not service.open_streams)
    assert service.admission().inputs == 0
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_a_client_that_leaves_half_way_leaves_nothing(
    serve: Serve, backend: HashBackend
) -> None:
    """Queued work is dropped and never run, and no room, task or stream is left."""
    service = await serve(backend=backend)
    await service.client.embed("warm up")
    tasks = len(asyncio.all_tasks())
    backend.hold()
    streams = [await Stream.open(service.client) for _ in range(3)]
    await streams[0].send(("running", "a"))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    for stream in streams:
        await stream.send(*((f"{number}", f"a {number}") for number in range(100)))
    await until(lambda: service.admission().inputs == 301)
    ran = len(backend.batches)
    for stream in streams:
        stream.call.cancel()
    await until(lambda: not service.open_streams)
    assert service.admission().inputs <= 1
    backend.release()
    await service.check_alive()
    assert service.admission().inputs == 0
    # The plain calls, and nothing of the streams.
    assert len(backend.batches) == ran + 2
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_a_silent_client_is_let_go(serve: Serve) -> None:
    """A stream without messages and without inputs in flight ends with DEADLINE_EXCEEDED."""
    service = await serve(stream_idle_timeout_s=0.1)
    opened = await Stream.open(service.client)
    silent = Stream(service.client)
    ranking = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await ranking.wait_for_connection()
    for failure in (
        await opened.failure(),
        await silent.failure(),
        await failure_of(ranking.read()),
    ):
        assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (failure.reason, failure.label) == ("DEADLINE_EXPIRED", "STREAM_IDLE")
    assert service.open_streams == 0
    await service.check_alive()


async def test_a_client_that_waits_for_its_answers_is_not_silent(
    serve: Serve, backend: HashBackend
) -> None:
    """However long the model takes, a stream with inputs in flight is not idle."""
    service = await serve(backend=backend, stream_idle_timeout_s=0.1)
    backend.hold()
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"))
    silent = Stream(service.client)
    # It was opened later and has timed out, so the first one's time is over, too.
    assert (await silent.failure()).label == "STREAM_IDLE"
    assert (await Stream(service.client).failure()).label == "STREAM_IDLE"
    backend.release()
    assert [result.id for result in await stream.results(1)] == ["a"]


async def test_a_client_that_does_not_read_is_let_go(serve: Serve, backend: HashBackend) -> None:
    """A write that is stuck ends the stream; when the client reads again it learns why."""
    service = await serve(
        backend=backend,
        stream_idle_timeout_s=0.3,
        max_stream_in_flight_inputs=64,
        max_stream_batch_inputs=16,
    )
    client = await service.connect(grpc__http2__bdp_probe=0)
    stream = await Stream.open(client)
    # More answers than the client's window holds, and few enough inputs for the server's: a
    # client that is still writing when the stream ends may not see the status.
    await _flood(stream, batches=20, inputs=16, id_length=256)
    await until(lambda: not service.open_streams)
    assert service.admission().inputs == 0
    failure = await stream.failure()
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (failure.reason, failure.label) == ("DEADLINE_EXPIRED", "CLIENT_TOO_SLOW")
    await service.check_alive()


async def test_bulk_work_waits_for_room_and_is_never_refused(
    serve: Serve, backend: HashBackend
) -> None:
    """Streams whose windows together exceed the queue are slowed down, and all are answered."""
    service = await serve(
        backend=backend,
        max_queued_inputs=20,
        max_stream_in_flight_inputs=64,
        max_stream_batch_inputs=16,
    )
    backend.hold()
    streams = [await Stream.open(service.client) for _ in range(4)]
    for stream in streams:
        for start in (0, 16, 32):
            await stream.send(*((str(start + number), "a text") for number in range(16)))
    await until(lambda: service.admission().inputs >= 16)
    assert service.admission().inputs <= 20
    # The other work class has its own queue limit.
    unary = asyncio.ensure_future(service.client.embed("a text"))
    backend.release()
    await unary
    for stream in streams:
        results = await stream.results(48)
        assert all(result.WhichOneof("outcome") == "embedding" for result in results)
        assert await stream.end() == []
    assert service.admission().inputs == 0


async def test_a_rerank_stream_answers_each_request_once(serve: Serve) -> None:
    """Hundreds of rankings in flight come back under their own ids."""
    service = await serve(max_stream_in_flight_inputs=64, max_stream_batch_inputs=16)
    documents = ["a", "of", "the"]
    keys = [str(number) for number in range(300)]
    stream = service.client.rerank.StreamRerank(
        iter((setup(), *(part(key, f"q {key}", documents) for key in keys))), timeout=PATIENCE_S
    )
    _, *answers = [answer async for answer in stream]
    by_id = {answer.result.id: answer.result.ranking for answer in answers}
    assert sorted(by_id) == sorted(keys)
    assert len(answers) == len(keys)
    for key in ("0", "150", "299"):
        request = rerank.RerankRequest(query=f"q {key}", documents=documents)
        alone = await service.client.rerank.Rerank(request)
        assert [one.index for one in by_id[key].results] == [one.index for one in alone.results]
        np.testing.assert_allclose(
            [one.score for one in by_id[key].results],
            [one.score for one in alone.results],
            atol=1e-5,
        )


def _running_jobs() -> int:
    return sum(type(one) is JobHandle for one in gc.get_objects())


async def test_answered_batches_of_an_open_stream_are_forgotten(
    serve: Serve, backend: HashBackend
) -> None:
    """An open stream keeps nothing of answered batches."""
    service = await serve(backend=backend)
    stream = await Stream.open(service.client)
    gc.collect()
    gc.disable()
    try:
        before = _running_jobs()
        for number in range(40):
            await stream.send((f"id {number}", f"text {number}"))
            await stream.results(1)
        after = _running_jobs()
    finally:
        gc.enable()
    # A thread may still hold its last job.
    assert after - before <= 4
    assert await stream.end() == []


async def test_vectors_of_all_tokens_make_the_window_smaller(cache_dir: Path) -> None:
    """The window of a stream with large results is smaller than the settings allow."""
    model = ModelSettings(id="m3", source=str(FIXTURES / "xlmr-bge-m3"))
    most = 1_048_576
    settings = settings_for(model, cache_dir=cache_dir, max_stream_in_flight_inputs=most)
    async with serving(settings) as service:
        loaded = service.server.catalog.find("m3", field="model").ready()
        largest = loaded.properties.max_tokens * loaded.properties.multi_vector_dimensions * 4
        windows = {}
        for representation in (pb.REPRESENTATION_DENSE, pb.REPRESENTATION_MULTI_VECTOR):
            stream = Stream(service.client)
            options = pb.EmbedOptions(representations=[representation])
            await stream.set_up(options=options)
            ready = (await stream.call.read()).ready
            windows[representation] = ready.max_in_flight_inputs
            assert await stream.end() == []
        assert windows[pb.REPRESENTATION_DENSE] == most
        assert windows[pb.REPRESENTATION_MULTI_VECTOR] == 2**28 // largest < most


async def _flood(stream: Stream, *, batches: int, inputs: int, id_length: int = 1) -> None:
    """Send many inputs as fast as the server reads them."""
    for number in range(batches):
        await stream.call.write(
            batch(
                [
                    (f"{number * inputs + place}".rjust(id_length, "-"), "a text")
                    for place in range(inputs)
                ]
            )
        )
