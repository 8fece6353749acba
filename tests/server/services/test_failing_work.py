import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.backends.base import BackendError, BackendUnreachableError
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tasks.reranking import Ranking, RerankSpec
from embedgrpc.engine.tokenizing.jobs import Tokenization, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.kinds import RerankMethod
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import WIDTH, HashBackend, vector_of
from tests.server.rankings import part, setup
from tests.server.service import PATIENCE_S, until
from tests.server.streams import Stream

CANARY = "canary-4711"
# "a" is one token; with the two special ones, this many letters make a sequence of nine.
NINE_TOKENS = "a a a a a a a"


def _spoil(backend: HashBackend, value: float) -> None:
    """Fill the rows of sequences of nine tokens with this value."""

    def answer(ids: IntArray) -> FloatArray:
        spoilt: FloatArray = np.full(WIDTH, value, np.float32)
        return spoilt if len(ids) == 9 else vector_of(ids)

    backend.answer = answer


def _raise(backend: HashBackend, error: Exception) -> None:
    def answer(_ids: IntArray) -> FloatArray:
        raise error

    backend.answer = answer


async def _started(backend: HashBackend) -> None:
    assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (BackendError("no memory"), grpc.StatusCode.INTERNAL, "BACKEND_FAILED"),
        (
            BackendUnreachableError("unplugged"),
            grpc.StatusCode.UNAVAILABLE,
            "BACKEND_UNAVAILABLE",
        ),
        (ZeroDivisionError("a bug"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_a_run_that_fails(
    serve: Serve, backend: HashBackend, error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    """A failed batch fails its calls and its inputs of streams, and nothing else."""
    service = await serve(backend=backend)
    _raise(backend, error)
    failure = await failure_of(service.client.embed("a text"))
    assert (failure.code, failure.reason) == (code, reason)
    assert str(error) not in failure.details + failure.trailing
    query = rerank.RerankRequest(query="q", documents=["d"])
    assert (await failure_of(service.client.rerank.Rerank(query))).reason == reason
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"), ("b", "b"))
    for result in await stream.results(2):
        assert result.error.code == code.value[0]
        assert common.ErrorReason.Name(result.error.reason) == f"ERROR_REASON_{reason}"
    backend.answer = vector_of
    await stream.send(("c", "c"))
    (result,) = await stream.results(1)
    assert result.WhichOneof("outcome") == "embedding"
    assert await stream.end() == []
    assert service.admission().inputs == 0
    await service.check_alive()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
async def test_numbers_that_are_no_embedding(
    serve: Serve, backend: HashBackend, value: float
) -> None:
    """One text's NaN, infinity or zeros fail its own call and field, or its own item."""
    service = await serve(backend=backend)
    _spoil(backend, value)
    options = pb.EmbedOptions(normalize=True)
    call = service.client.embed("a", "b", NINE_TOKENS, "c", options=options)
    failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "NON_FINITE_OUTPUT")
    assert failure.fields == ("texts[2]",)

    backend.hold()
    others = asyncio.ensure_future(service.client.embed("first"))
    await _started(backend)
    good = asyncio.ensure_future(service.client.embed("a", "b", options=options))
    bad = asyncio.ensure_future(service.client.embed(NINE_TOKENS, options=options))
    await until(lambda: service.admission().inputs == 4)
    backend.release()
    await asyncio.gather(others, good)
    assert (await failure_of(bad)).fields == ("texts[0]",)

    stream = await Stream.open(service.client, options=options)
    await stream.send(("good", "a"), ("bad", NINE_TOKENS), ("also good", "c"))
    results = {result.id: result for result in await stream.results(3)}
    assert results["bad"].error.reason == common.ERROR_REASON_NON_FINITE_OUTPUT
    assert results["bad"].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert results["good"].WhichOneof("outcome") == "embedding"
    assert results["also good"].WhichOneof("outcome") == "embedding"
    assert await stream.end() == []

    query = rerank.RerankRequest(query="q", documents=["d", NINE_TOKENS])
    failure = await failure_of(service.client.rerank.Rerank(query))
    assert (failure.reason, failure.fields) == ("NON_FINITE_OUTPUT", ("documents[1]",))
    query = rerank.RerankRequest(query=NINE_TOKENS, documents=["d"])
    failure = await failure_of(service.client.rerank.Rerank(query))
    assert (failure.reason, failure.fields) == ("NON_FINITE_OUTPUT", ("query",))
    await service.check_alive()


async def test_zeros_are_an_answer_where_no_direction_is_asked_for(
    serve: Serve, backend: HashBackend
) -> None:
    """Without normalisation a vector of zeros is a vector."""
    service = await serve(backend=backend)
    _spoil(backend, 0.0)
    answer = await service.client.embed(NINE_TOKENS, options=pb.EmbedOptions(normalize=False))
    assert list(answer.embeddings[0].dense.values) == [0.0] * WIDTH


async def test_work_of_a_client_that_left_is_never_run(serve: Serve, backend: HashBackend) -> None:
    """A call that is cancelled in the queue frees its room, and its texts are not run."""
    service = await serve(backend=backend)
    backend.hold()
    first = asyncio.ensure_future(service.client.embed("first"))
    await _started(backend)
    before = backend.sequences
    waiting = asyncio.ensure_future(service.client.embed(*["a text"] * 50))
    ranking = asyncio.ensure_future(
        service.client.rerank.Rerank(rerank.RerankRequest(query="q", documents=["d"] * 20))
    )
    await until(lambda: service.admission().inputs == 72)
    waiting.cancel()
    ranking.cancel()
    await until(lambda: service.admission().inputs == 1)
    backend.release()
    await first
    await service.check_alive()
    assert backend.sequences == before + 2


async def test_work_whose_time_is_over_is_never_run(serve: Serve, backend: HashBackend) -> None:
    """A call whose deadline passes in the queue fails at once, and its work is skipped."""
    service = await serve(backend=backend, max_unary_s=0.2)
    backend.hold()
    blocked = asyncio.ensure_future(failure_of(service.client.embed("first")))
    await _started(backend)
    before = backend.sequences
    # The server's own limit, while the client would wait longer; and the client's.
    ours = await failure_of(service.client.embed("a", "b"))
    theirs = await failure_of(service.client.embed("a", "b", timeout=0.05))
    assert (ours.code, ours.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
    assert theirs.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await blocked).reason == "DEADLINE_EXPIRED"
    await until(lambda: service.admission().inputs == 0)
    backend.release()
    await service.check_alive()
    assert backend.sequences == before + 2


async def test_a_stream_whose_time_is_over(serve: Serve, backend: HashBackend) -> None:
    """A stream's deadline ends it, and its texts in the queue are never run."""
    service = await serve(backend=backend)
    backend.hold()
    blocked = asyncio.ensure_future(service.client.embed("first"))
    await _started(backend)
    before = backend.sequences
    stream = Stream(service.client, timeout_s=0.2)
    await stream.set_up()
    await stream.send(("a", "a"), ("b", "b"))
    assert (await stream.failure()).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not service.open_streams)
    assert service.admission().inputs == 1
    backend.release()
    await blocked
    await service.check_alive()
    assert backend.sequences == before + 2


async def test_a_full_queue_refuses(serve: Serve, backend: HashBackend) -> None:
    """A call beyond the limit is refused with a retry delay, before any work."""
    service = await serve(backend=backend, max_queued_inputs=10)
    backend.hold()
    first = asyncio.ensure_future(service.client.embed("first"))
    await _started(backend)
    # A single call counts for less than the whole queue.
    others = asyncio.gather(*(service.client.embed(*["a text"] * 3) for _ in range(3)))
    await until(lambda: service.admission().inputs == 10)
    before = len(backend.batches)
    for _ in range(20):
        failure = await failure_of(service.client.embed("one too many"))
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert failure.label == "QUEUE_FULL"
        assert failure.retry_delay_s is not None
        assert 0.05 < failure.retry_delay_s <= 36
        assert int(failure.pushback_ms) == round(failure.retry_delay_s * 1000)
    assert len(backend.batches) == before
    # Health, the list of models and streams are not refused.
    assert await service.client.status("embedgrpc.v1.EmbeddingService/embed") == 1
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"))
    backend.release()
    await asyncio.gather(first, others)
    assert len(await stream.results(1)) == 1
    assert await stream.end() == []
    await service.check_alive()


async def test_a_burst_is_answered_as_a_whole(serve: Serve, backend: HashBackend) -> None:
    """A burst of calls with distant deadlines is admitted, although it fills many batches."""
    service = await serve(backend=backend, batch_tokens=512)
    backend.hold()
    first = asyncio.ensure_future(service.client.embed("first"))
    await _started(backend)
    clients = [await service.connect() for _ in range(4)]
    calls = [
        asyncio.ensure_future(client.embed(f"{number} " + "a " * 90, timeout=60))
        for client in clients
        for number in range(100)
    ]
    # Some ninety tokens each, of which the server knows once they are tokenized.
    await until(lambda: service.admission().inputs == 401 or any(one.done() for one in calls))
    assert service.admission().inputs == 401
    backend.release()
    assert len(await asyncio.gather(first, *calls)) == 401
    await service.check_alive()


async def test_a_full_queue_of_tokens_refuses(serve: Serve, backend: HashBackend) -> None:
    """Few inputs with many tokens fill the queue as well."""
    service = await serve(backend=backend, max_queued_tokens=100)
    backend.hold()
    first = asyncio.ensure_future(service.client.embed("a " * 90))
    await _started(backend)
    failure = await failure_of(service.client.embed("a " * 90))
    assert (failure.reason, failure.label) == ("OVERLOADED", "QUEUE_FULL")
    backend.release()
    await first


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    serve: Serve, backend: HashBackend
) -> None:
    """Work that would expire in the queue is refused."""
    service = await serve(backend=backend)
    # As if a token took 10 s.
    for _ in range(200):
        service.admission().drain_rate.add(1, 10.0)
    backend.hold()
    first = asyncio.ensure_future(service.client.embed("first", timeout=PATIENCE_S))
    await _started(backend)
    before = backend.sequences
    failure = await failure_of(service.client.embed("late", timeout=5))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert failure.label == "DEADLINE_UNREACHABLE"
    assert failure.retry_delay_s is not None
    assert int(failure.pushback_ms) == round(failure.retry_delay_s * 1000)
    backend.release()
    await first
    assert backend.sequences == before


class _Cancelled:
    """A reranker whose work is cancelled behind its back."""

    method = RerankMethod.SIMILARITY

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        spec: RerankSpec,
        call: Call,
        *,
        documents_bytes: int,
        partial: bool = False,
    ) -> Ranking:
        """Never ends well; see `Reranker`."""
        del query, documents, spec, call, documents_bytes, partial
        future: asyncio.Future[Ranking] = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.cancel)
        return await future


async def test_a_stray_cancellation_is_answered(serve: Serve) -> None:
    """A stray cancellation fails the call, or the request of a stream, with UNAVAILABLE."""
    service = await serve()
    (model,) = service.server.catalog
    model.loaded = dataclasses.replace(model.ready(), reranker=_Cancelled())
    request = rerank.RerankRequest(query="q", documents=["d"])
    failure = await failure_of(service.client.rerank.Rerank(request, timeout=PATIENCE_S))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    stream = service.client.rerank.StreamRerank(
        iter([setup(), part("a", "q", ["d"])]), timeout=PATIENCE_S
    )
    _, answer = [answer async for answer in stream]
    assert answer.result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    await service.check_alive()


class _Panicking:
    """A tokenizer that fails as the library's native code does: not with an `Exception`."""

    cut_points = None

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Fail for one text, with the text in the message."""
        if CANARY in texts:
            raise BaseException(CANARY)  # noqa: TRY002 - as pyo3's PanicException
        return [np.arange(3) for _ in texts]


async def test_a_tokenizer_that_panics_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """The thread outlives a panic and a fault in what follows; the text is in no log line."""
    caplog.set_level(logging.DEBUG)
    tokenizer: Any = _Panicking()
    threads = TokenizingThreads(tokenizer, threads=1, name="test")
    loop = asyncio.get_running_loop()

    async def run(text: str, done: Callable[[], None]) -> EngineError | None:
        outcome: asyncio.Future[EngineError | None] = loop.create_future()

        def succeeded(_: list[TokenizeResult]) -> None:
            done()
            loop.call_soon_threadsafe(outcome.set_result, None)

        def failed(error: EngineError) -> None:
            loop.call_soon_threadsafe(outcome.set_result, error)

        threads.submit(
            Tokenization(
                texts=[text],
                check=lambda _, text: CheckedText(text, cut=False),
                work_class=WorkClass.INTERACTIVE,
                caller="",
                atomic=True,
                read_limit=None,
                wanted=lambda: True,
                done=succeeded,
                failed=failed,
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            return await outcome

    def break_down() -> None:
        raise LookupError(CANARY)

    try:
        errors = [await run(CANARY, lambda: None), await run("a text", break_down)]
        assert await run("a text", lambda: None) is None
    finally:
        threads.close()
    logged = repr([record.__dict__ for record in caplog.records])
    for error in errors:
        assert error is not None
        assert error.reason.value == "INTERNAL"
        assert error.metadata["incident"] in logged
    assert CANARY not in logged
