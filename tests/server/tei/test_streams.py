"""The streams of tei.v1: order, failures, flow and ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from embedgrpc.tei.v1 import tei_pb2
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import PATIENCE_S, Service, until
from tests.server.tei.conftest import Tei

MANY = 10_000


async def _vectors(tei: Tei, texts: list[str]) -> list[list[float]]:
    return [
        list((await tei.embed.Embed(tei_pb2.EmbedRequest(inputs=one))).embeddings) for one in texts
    ]


async def _stream(tei: Tei, texts: Iterator[str] | AsyncIterator[str] | list[str]) -> Any:
    async def requests() -> AsyncIterator[tei_pb2.EmbedRequest]:
        for one in texts:  # type: ignore[union-attr]
            yield tei_pb2.EmbedRequest(inputs=one)

    return tei.embed.EmbedStream(requests(), timeout=PATIENCE_S)


async def test_answers_come_in_the_order_of_the_messages(serve: Serve) -> None:
    """Long and short texts in turns: each answer is that of the unary call."""
    service = await serve(tei_model="embed")
    tei = Tei(service)
    texts = [f"{number} " + "word " * (number % 7 * 4) for number in range(40)]
    answers = [one async for one in await _stream(tei, texts)]
    assert [list(one.embeddings) for one in answers] == await _vectors(tei, texts)
    assert [one.metadata.compute_chars for one in answers] == list(map(len, texts))
    assert all(one.metadata.inference_time_ns for one in answers)


@pytest.mark.asyncio(loop_scope="module")
async def test_every_stream_answers_as_its_unary_method(service: Service, tei: Tei) -> None:
    """Sparse vectors, predictions, pairs, tokens and texts."""
    cases: list[tuple[Any, Any, list[Any], str]] = [
        (
            tei.embed.EmbedSparse,
            tei.embed.EmbedSparseStream,
            [tei_pb2.EmbedSparseRequest(inputs=text) for text in ("one text", "another")],
            "splade-bert",
        ),
        (
            tei.embed.EmbedAll,
            tei.embed.EmbedAllStream,
            [tei_pb2.EmbedAllRequest(inputs=text) for text in ("one text", "another")],
            "embed",
        ),
        (
            tei.predict.Predict,
            tei.predict.PredictStream,
            [tei_pb2.PredictRequest(inputs=text) for text in ("one text", "another")],
            "classify-nli",
        ),
        (
            tei.predict.PredictPair,
            tei.predict.PredictPairStream,
            [tei_pb2.PredictPairRequest(inputs=["one", text]) for text in ("text", "two")],
            "classify-nli",
        ),
        (
            tei.tokenize.Tokenize,
            tei.tokenize.TokenizeStream,
            [tei_pb2.EncodeRequest(inputs=text) for text in ("one text", "another")],
            "embed",
        ),
        (
            tei.tokenize.Decode,
            tei.tokenize.DecodeStream,
            [tei_pb2.DecodeRequest(ids=ids) for ids in ([5, 6, 7], [8])],
            "embed",
        ),
    ]
    del service
    for unary, stream, messages, model in cases:
        metadata = (("embedgrpc-model", model),)
        expected = [await unary(one, metadata=metadata, timeout=PATIENCE_S) for one in messages]
        call = stream(iter(messages), metadata=metadata, timeout=PATIENCE_S)
        answers = [one async for one in call]
        for one in (*answers, *expected):
            if hasattr(one, "metadata"):
                one.ClearField("metadata")
        assert answers == expected


async def test_a_bad_text_ends_the_stream_after_the_answers_before_it(serve: Serve) -> None:
    """There is nowhere else to put its error; the status is that of the text."""
    service = await serve(tei_model="embed")
    tei = Tei(service)
    call = await _stream(tei, ["one", "two", "word " * 400, "four"])
    answers = []

    async def read() -> None:
        async for one in call:
            answers.append(one)  # noqa: PERF401 - kept when the stream fails

    failure = await failure_of(read())
    assert len(answers) == 2
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INPUT_TOO_LONG"
    assert failure.fields == ("inputs",)
    await until(lambda: not service.open_streams)
    await service.check_alive()


async def test_a_client_that_does_not_read_is_not_read(serve: Serve, backend: HashBackend) -> None:
    """The window bounds the texts in flight; what a client left behind is dropped."""
    service = await serve(
        backend=backend,
        tei_model="embed",
        max_stream_in_flight_inputs=8,
        max_stream_batch_inputs=8,
    )
    backend.hold()
    taken = 0

    async def requests() -> AsyncIterator[tei_pb2.EmbedRequest]:
        nonlocal taken
        for number in range(MANY):
            taken += 1
            yield tei_pb2.EmbedRequest(inputs=f"text {number} " + "x" * 2000, truncate=True)

    call = Tei(service).embed.EmbedStream(requests(), timeout=PATIENCE_S)
    reading = asyncio.ensure_future(anext(aiter(call)))
    await until(lambda: service.open_streams and service.bidi._in_flight == 8)
    assert taken < MANY
    call.cancel()
    backend.release()
    await asyncio.wait([reading])
    await until(lambda: not service.open_streams)
    await until(lambda: not service.admission().inputs)
    await service.check_alive()


async def test_a_stop_answers_what_was_accepted(serve: Serve, backend: HashBackend) -> None:
    """The stream then ends with the reason, as those of embedgrpc.v1 do."""
    service = await serve(backend=backend, tei_model="embed")
    backend.hold()
    call = Tei(service).embed.EmbedStream(timeout=PATIENCE_S)
    for text in ("a", "b"):
        await call.write(tei_pb2.EmbedRequest(inputs=text))
    await until(lambda: service.open_streams and service.bidi._in_flight == 2)
    service.server._open_streams.drain()
    backend.release()
    answers = [await call.read(), await call.read()]
    assert all(len(one.embeddings) for one in answers)
    failure = await failure_of(call.read())
    assert (failure.reason, failure.label) == ("SHUTTING_DOWN", "STOPPING")


async def test_texts_to_rank_are_bounded(serve: Serve) -> None:
    """Their number, their size, their query and the time that they take."""
    service = await serve(tei_model="embed", max_inputs=3, stream_idle_timeout_s=0.5)
    rerank = Tei(service).rerank

    async def rank(*messages: tei_pb2.RerankStreamRequest) -> Any:
        return await rerank.RerankStream(iter(messages), timeout=PATIENCE_S)

    one = tei_pb2.RerankStreamRequest(query="q", text="text")
    failure = await failure_of(rank(one, one, one, one))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 3 texts" in failure.details
    failure = await failure_of(rank(one, tei_pb2.RerankStreamRequest(query="r", text="text")))
    assert failure.fields == ("query",)
    failure = await failure_of(rank())
    assert failure.label == "NO_MESSAGE"
    silent = rerank.RerankStream(timeout=PATIENCE_S)
    await silent.write(one)
    assert await asyncio.wait_for(silent.code(), PATIENCE_S) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len((await rank(one, one, one)).ranks) == 3


@pytest.mark.long
async def test_ten_thousand_texts(serve: Serve) -> None:
    """All are answered, in order, while the client reads as they come."""
    service = await serve(tei_model="embed")
    tei = Tei(service)
    texts = [f"text {number % 97}" for number in range(MANY)]
    expected = await _vectors(tei, texts[:97])
    count = 0
    async for one in await _stream(tei, texts):
        assert list(one.embeddings) == expected[count % 97]
        count += 1
    assert count == MANY
