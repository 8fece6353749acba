from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.rankings import part, setup
from tests.server.service import (
    CROSS,
    EMBED,
    PATIENCE_S,
    Service,
    serving,
    settings_for,
    until,
)
from tests.server.streams import Stream, batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

Step = Callable[[Stream], Awaitable[None]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN_ENUM = 77


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server for the whole table: every row must leave it working."""
    settings = settings_for(
        EMBED,
        CROSS,
        cache_dir=cache_dir,
        max_inputs=8,
        max_stream_batch_inputs=4,
        max_stream_in_flight_inputs=8,
    )
    async with serving(settings) as started:
        yield started


SETUPS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str, str]] = {
    "unknown model": (
        {"model": "nobody"}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "setup.model",
    ),
    "model name too long": ({"model": "m" * 129}, INVALID, "INVALID_REQUEST", "setup.model"),
    "cross-encoder": (
        {"model": "cross"}, grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED", "setup.model",
    ),
    "unknown order": ({"order": UNKNOWN_ENUM}, INVALID, "INVALID_REQUEST", "setup.order"),
    "unknown encoding": (
        {"options": pb.EmbedOptions(encoding=UNKNOWN_ENUM)},  # type: ignore[arg-type]  # a number that the enum lacks
        INVALID, "INVALID_REQUEST", "setup.options.encoding",
    ),
    "too many dimensions": (
        {"options": pb.EmbedOptions(dimensions=37)},
        INVALID, "INVALID_REQUEST", "setup.options.dimensions",
    ),
    "sparse": (
        {"options": pb.EmbedOptions(representations=[pb.REPRESENTATION_SPARSE])},
        grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED", "setup.options.representations[0]",
    ),
    "unknown prompt": (
        {"options": pb.EmbedOptions(prompt_name="nobody")},
        grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED", "setup.options.prompt_name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", SETUPS.values(), ids=SETUPS)
async def test_a_bad_setup_ends_the_stream(
    service: Service, row: tuple[dict[str, Any], grpc.StatusCode, str, str]
) -> None:
    """A setup that cannot be met is refused with the code and field of a unary call."""
    setup, code, reason, field = row
    stream = Stream(service.client)
    await stream.set_up(**setup)
    failure = await stream.failure()
    assert (failure.code, failure.reason) == (code, reason)
    assert failure.fields == (field,)
    await service.check_alive()


async def _no_setup(stream: Stream) -> None:
    await stream.send(("a", "a"))


async def _no_step(stream: Stream) -> None:
    await stream.call.write(pb.StreamEmbedRequest())


async def _second_setup(stream: Stream) -> None:
    await stream.set_up()
    await stream.set_up()


async def _step_unset_later(stream: Stream) -> None:
    await stream.set_up()
    await stream.call.write(pb.StreamEmbedRequest())


async def _empty_batch(stream: Stream) -> None:
    await stream.set_up()
    await stream.send()


async def _large_batch(stream: Stream) -> None:
    await stream.set_up()
    await stream.send(*((str(number), "a") for number in range(5)))


async def _id_twice_in_a_batch(stream: Stream) -> None:
    await stream.set_up()
    await stream.send(("a", "a"), ("b", "b"), ("a", "c"))


async def _long_id(stream: Stream) -> None:
    await stream.set_up()
    await stream.send(("a", "a"), ("i" * 257, "b"))


VIOLATIONS: dict[str, tuple[Step, str, str]] = {
    "a batch before the setup": (_no_setup, "OUT_OF_ORDER", "step"),
    "nothing before the setup": (_no_step, "OUT_OF_ORDER", "step"),
    "a second setup": (_second_setup, "OUT_OF_ORDER", "step"),
    "nothing after the setup": (_step_unset_later, "OUT_OF_ORDER", "step"),
    "an empty batch": (_empty_batch, "NO_INPUTS", "batch.inputs"),
    "too many inputs in a message": (_large_batch, "TOO_MANY_INPUTS", "batch.inputs"),
    "an id twice in a batch": (_id_twice_in_a_batch, "DUPLICATE_ID", "batch.inputs[2].id"),
    "an id too long": (_long_id, "", "batch.inputs[1].id"),
}


@pytest.mark.parametrize("row", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_broken_rule_ends_the_stream(service: Service, row: tuple[Step, str, str]) -> None:
    """A message that breaks the protocol ends its own stream only."""
    breach, label, field = row
    stream = Stream(service.client)
    await breach(stream)
    failure = await stream.failure()
    assert (failure.code, failure.reason, failure.label) == (INVALID, "INVALID_REQUEST", label)
    assert failure.fields == (field,)
    assert service.open_streams == 0
    await service.check_alive()


async def test_what_came_before_a_broken_rule_is_answered(service: Service) -> None:
    """The inputs of earlier messages get their results before the stream ends."""
    stream = await Stream.open(service.client)
    await stream.send(("a", "a"), ("b", "b"))
    await stream.set_up()
    assert [result.id for result in await stream.results(2)] == ["a", "b"]
    assert (await stream.failure()).label == "OUT_OF_ORDER"


@pytest.mark.parametrize("order", [pb.RESULT_ORDER_INPUT, pb.RESULT_ORDER_COMPLETION])
async def test_bad_inputs_fail_alone(service: Service, order: pb.ResultOrder) -> None:
    """Each bad input is answered with its own reason, and the good ones as in a call."""
    inputs = {
        "good": "a good text",
        "empty": "",
        "space": " \u3000\n",
        "invisible": "\u200b",
        "characters": "word " * 30_000,
        "tokens": "a " * 200,
        "also good": "another good text",
    }
    stream = await Stream.open(
        service.client, options=pb.EmbedOptions(truncation=common.TRUNCATION_NONE), order=order
    )
    items = list(inputs.items())
    await stream.send(*items[:4])
    await stream.send(*items[4:])
    results = {result.id: result for result in await stream.end()}
    assert set(results) == set(inputs)
    reasons = {
        identifier: (result.error.code, common.ErrorReason.Name(result.error.reason))
        for identifier, result in results.items()
        if result.WhichOneof("outcome") == "error"
    }
    number, _ = INVALID.value
    assert reasons == {
        "empty": (number, "ERROR_REASON_EMPTY_INPUT"),
        "space": (number, "ERROR_REASON_EMPTY_INPUT"),
        "invisible": (number, "ERROR_REASON_EMPTY_INPUT"),
        "characters": (number, "ERROR_REASON_INPUT_TOO_LONG"),
        "tokens": (number, "ERROR_REASON_INPUT_TOO_LONG"),
    }
    expected = await service.client.embed("a good text", "another good text")
    for identifier, unary in zip(("good", "also good"), expected.embeddings, strict=True):
        vector = results[identifier].embedding.dense.values
        np.testing.assert_allclose(vector, unary.dense.values, atol=1e-6)
        assert results[identifier].embedding.token_count == unary.token_count


async def test_no_message_is_larger_than_the_client_accepts(service: Service) -> None:
    """Results are spread over messages that fit; one that fits into none fails alone."""
    metadata = [("embedgrpc-max-response-bytes", "500")]
    stream = await Stream.open(service.client, metadata=metadata)
    for first in range(0, 20, 4):
        await stream.send(*((str(one), f"text number {one}") for one in range(first, first + 4)))
    await stream.call.done_writing()
    answered = 0
    while (message := await stream.call.read()) is not grpc.aio.EOF:
        assert message.ByteSize() <= 500
        answered += len(message.results.results)
    assert answered == 20
    tiny = await Stream.open(service.client, metadata=[("embedgrpc-max-response-bytes", "100")])
    await tiny.send(("large", "a text"), ("bad", ""))
    results = {result.id: result for result in await tiny.end()}
    assert "would have about" in results["large"].error.message
    assert results["bad"].error.reason == common.ERROR_REASON_EMPTY_INPUT


async def test_results_that_are_ready_together_are_split_to_fit(service: Service) -> None:
    """A result that just fits is sent alone, and shares its message with no other."""
    stream = await Stream.open(service.client)
    await stream.send(("a", "a text"))
    (alone,) = await stream.results(1)
    assert alone.WhichOneof("outcome") == "embedding"
    assert await stream.end() == []
    limit = alone.ByteSize() + 64
    metadata = [("embedgrpc-max-response-bytes", str(limit))]
    stream = await Stream.open(service.client, metadata=metadata)
    await stream.send(*((identifier, "a text") for identifier in "abcd"))
    for identifier in "abcd":
        message = await stream.call.read()
        assert message.ByteSize() <= limit
        (result,) = message.results.results
        assert (result.id, result.embedding) == (identifier, alone.embedding)
    assert await stream.end() == []


async def test_a_stream_of_bad_inputs_alone(service: Service) -> None:
    """A message in which nothing can be run is answered in full."""
    stream = await Stream.open(service.client)
    for start in range(0, 40, 4):
        await stream.send(*((str(number), "") for number in range(start, start + 4)))
        await stream.results(4)
    assert await stream.end() == []


async def test_an_empty_stream_ends_well(service: Service) -> None:
    """A client that half-closes at once, or after the setup, has done nothing wrong."""
    assert await Stream(service.client).end() == []
    stream = await Stream.open(service.client)
    assert await stream.end() == []
    await service.check_alive()


async def test_an_id_may_be_used_again_once_it_is_answered(service: Service) -> None:
    """Ids are unique among the inputs in flight, and may hold any characters."""
    stream = await Stream.open(service.client)
    for identifier in ("same", "same", "", "", "\u202e\0\U0001f600", "i" * 256):
        await stream.send((identifier, "a text"))
        (result,) = await stream.results(1)
        assert result.id == identifier
        assert result.WhichOneof("outcome") == "embedding"
    assert await stream.end() == []


async def test_an_id_of_an_earlier_message_is_refused_while_in_flight(cache_dir: Path) -> None:
    """Two messages may not use one id before the first is answered."""
    backend = HashBackend()
    async with serving(settings_for(cache_dir=cache_dir), backend.open) as service:
        backend.hold()
        stream = await Stream.open(service.client)
        await stream.send(("a", "one"))
        await stream.call.write(batch([("b", "two"), ("a", "three")]))
        await until(lambda: service.bidi._failure)
        backend.release()
        results = await stream.results(1)
        assert [result.id for result in results] == ["a"]
        failure = await stream.failure()
    assert failure.label == "DUPLICATE_ID"
    assert failure.fields == ("batch.inputs[1].id",)


async def test_an_id_of_an_earlier_ranking_is_refused_while_in_flight(cache_dir: Path) -> None:
    """Two queries may not use one id before the first has its result, which it still gets."""
    backend = HashBackend()
    async with serving(settings_for(cache_dir=cache_dir), backend.open) as service:
        backend.hold()
        stream = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
        await stream.write(setup())
        assert (await stream.read()).WhichOneof("step") == "ready"
        for _ in range(2):
            await stream.write(part("same", "q", ["d"]))
        await until(lambda: service.open_streams and service.bidi._failure)
        backend.release()
        assert (await stream.read()).result.WhichOneof("outcome") == "ranking"
        failure = await failure_of(stream.read())
    assert (failure.label, failure.fields) == ("DUPLICATE_ID", ("part.id",))


async def test_bad_queries_of_a_rerank_stream_fail_alone(service: Service) -> None:
    """Each bad query has its reason under its id; the stream goes on."""
    parts = [
        part("good", "q", ["one", "two"]),
        part("no query", "", ["d"]),
        part("empty document", "q", ["d", " "]),
        part("too many", "q", ["d"] * 4, more=True),
        part("too many", "", ["d"] * 4, more=True),
        part("too many", "", ["d"]),
        part("last", "q", ["one", "two"]),
    ]
    stream = service.client.rerank.StreamRerank(iter((setup("cross"), *parts)), timeout=PATIENCE_S)
    ready, *answers = [answer async for answer in stream]
    assert await stream.code() is grpc.StatusCode.OK
    assert ready.ready.model == "cross"
    results = {answer.result.id: answer.result for answer in answers}
    assert set(results) == {message.part.id for message in parts}
    reasons = {
        key: common.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
        for key, result in results.items()
        if result.WhichOneof("outcome") == "error"
    }
    assert reasons == {
        "no query": "EMPTY_INPUT",
        "empty document": "EMPTY_INPUT",
        "too many": "INVALID_REQUEST",
    }
    unary = await service.client.rerank.Rerank(
        rerank.RerankRequest(model="cross", query="q", documents=["one", "two"])
    )
    for key in ("good", "last"):
        assert results[key].ranking.results == unary.results
        assert results[key].ranking.usage == unary.usage


async def test_a_query_may_come_in_parts(service: Service) -> None:
    """Its documents are ranked together; positions count from the first part."""
    documents = [f"document {number}" for number in range(7)]
    # A stream accepts four inputs a message here, and eight a query.
    stream = service.client.rerank.StreamRerank(
        iter(
            (
                setup(return_documents=True),
                part("a", "q", documents[:3], more=True),
                part("a", "", documents[3:4], more=True),
                part("a", "", documents[4:]),
            )
        ),
        timeout=PATIENCE_S,
    )
    _, answer = [one async for one in stream]
    results = answer.result.ranking.results
    assert sorted(one.index for one in results) == list(range(7))
    assert all(one.document == documents[one.index] for one in results)
    whole = await service.client.rerank.Rerank(rerank.RerankRequest(query="q", documents=documents))
    assert [one.index for one in results] == [one.index for one in whole.results]


OPEN_QUERY = part("a", "q", ["d"], more=True)


@pytest.mark.parametrize(
    ("messages", "label", "field"),
    [
        ([part("a", "q", ["d"])], "OUT_OF_ORDER", "step"),
        ([setup(), setup()], "OUT_OF_ORDER", "step"),
        ([rerank.StreamRerankRequest()], "OUT_OF_ORDER", "step"),
        ([setup(), part("a" * 257, "q", ["d"])], "", "part.id"),
        ([setup(), part("a", "q", [])], "NO_INPUTS", "part.documents"),
        ([setup(), OPEN_QUERY, part("b", "q", ["d"])], "OUT_OF_ORDER", "step"),
        ([setup(), OPEN_QUERY, part("a", "q", ["d"])], "OUT_OF_ORDER", "step"),
        ([setup(), OPEN_QUERY], "OUT_OF_ORDER", "step"),
        ([setup(score_scale=77)], "UNKNOWN_ENUM_VALUE", "setup.options.score_scale"),
        ([setup(priority=77)], "UNKNOWN_ENUM_VALUE", "setup.options.priority"),
        ([setup(max_tokens=-1)], "", "setup.options.max_tokens"),
    ],
    ids=[
        "no setup", "setup twice", "empty step", "long id", "no documents", "parts mixed",
        "query twice", "no last part", "unknown scale", "unknown priority", "negative tokens",
    ],
)  # fmt: skip
async def test_broken_rules_end_a_rerank_stream(
    service: Service, messages: list[rerank.StreamRerankRequest], label: str, field: str
) -> None:
    """The error names the rule, after what was accepted has its result."""
    call = service.client.rerank.StreamRerank(iter(messages), timeout=PATIENCE_S)

    async def read_all() -> None:
        async for _ in call:
            pass

    failure = await failure_of(read_all())
    assert (failure.code, failure.label, failure.fields) == (INVALID, label, (field,))
    await service.check_alive()


async def test_an_empty_rerank_stream_ends_well(service: Service) -> None:
    """A client that has nothing to rank may say so."""
    empty = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await empty.done_writing()
    assert await empty.read() is grpc.aio.EOF
    assert await empty.code() is grpc.StatusCode.OK
