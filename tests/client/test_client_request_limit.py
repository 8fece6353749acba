import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from embedgrpc.client import (
    AsyncClient,
    Client,
    InputTooLongError,
    MessageTooLargeError,
)
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import ResultOrder
from embedgrpc.client.request_limit import RequestLimit, too_large_error
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.servicer import Script, serving
from tests.client.test_client_stream import ready_state

MIB = 2**20
# Small, so that tests are fast; large enough for a page of text.
SMALL_BYTES = 4096


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client, text: client.embed(["a", "b", text, "c"]), "texts[2]"),
        (lambda client, text: client.rerank("q", ["a", text]), "documents[1]"),
        (lambda client, text: client.rerank(text, ["a"]), "query"),
        (lambda client, text: client.embed(["a"], prompt_text=text), "prompt_text"),
        (lambda client, text: client.get_model(text), "name"),
        (lambda client, text: client.health(text), "service"),
        (lambda client, text: client.embed_stream(["a"], prompt_text=text), "prompt_text"),
        (lambda client, text: client.embed_stream(["a"], model=text), "model"),
    ],
)
def test_a_text_that_fits_into_no_request_is_named_before_it_is_sent(
    client: Client, script: Script, call: Any, field: str
) -> None:
    """The error has the name of the text, its size in UTF-8 and the limit, but not the text."""
    text = "𝄞" * (MIB + 1)  # four bytes each
    with pytest.raises(InputTooLongError) as caught:
        call(client, text)
    error = caught.value
    assert error.message.startswith(f"{field} has {4 * MIB + 4} bytes, and a request has room for")
    assert error.field_violations[0][0] == field
    assert error.metadata == {
        "label": "MESSAGE_TOO_LARGE",
        "bytes": str(4 * MIB + 4),
        "maxBytes": str(4 * MIB - 64),
    }
    assert error.reason == "INPUT_TOO_LONG"
    assert "𝄞" not in str(error)
    assert script.calls == []


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.embed(["x" * MIB] * 4),
        lambda client: client.rerank("q", ["x" * MIB] * 4),
    ],
)
def test_texts_that_are_too_large_together_are_not_sent(
    client: Client, script: Script, call: Any
) -> None:
    """No text alone is too large: the error has the size of the request and the limit."""
    with pytest.raises(MessageTooLargeError, match="send fewer texts in a call") as caught:
        call(client)
    assert int(caught.value.metadata["bytes"]) > 4 * MIB
    assert caught.value.metadata["maxBytes"] == str(4 * MIB)
    assert script.calls == []


@pytest.fixture
def small(client_class: type[Client]) -> Iterator[tuple[Client, Script]]:
    """A server with a low limit, and a client with the same limit."""
    with serving(max_request_bytes=SMALL_BYTES) as (servicer, target):
        client = client_class(target, timeout_s=10, max_request_bytes=SMALL_BYTES)
        yield client, servicer.script
        client.close()


def test_a_request_of_exactly_the_limit_is_sent(small: tuple[Client, Script]) -> None:
    """The client counts like gRPC: a request of the limit passes, one byte more fails."""
    client, script = small
    request = pb.EmbedRequest(
        texts=["x" * 2000] * 2,
        options={"encoding": "VECTOR_ENCODING_FLOAT32"},
        max_response_bytes=RESPONSE_BYTES_MAX,
    )
    last = "x" * (2000 + SMALL_BYTES - request.ByteSize())
    assert len(client.embed(["x" * 2000, last])) == 2
    with pytest.raises(MessageTooLargeError):
        client.embed(["x" * 2000, last + "x"])
    assert len(script.calls) == 1


@pytest.mark.parametrize("order", ["input", "completion"])
def test_an_input_that_fits_into_no_message_fails_alone(
    small: tuple[Client, Script], order: ResultOrder
) -> None:
    """The other texts succeed; the error has id, position, size and limit."""
    client, script = small
    script.max_in_flight_inputs, script.max_batch_inputs = 40, 20
    inputs = [((n, "id"), "x" * (SMALL_BYTES if n % 5 == 2 else n + 1)) for n in range(100)]
    results = list(client.embed_stream(inputs, order=order))
    if order == "input":
        assert [result.id for result in results] == [name for name, _ in inputs]
    failed = {result.id: result.error for result in results if result.error is not None}
    assert sorted(failed) == [name for name, text in inputs if len(text) == SMALL_BYTES]
    assert len(results) == len(inputs)
    error = failed[2, "id"]
    assert type(error) is InputTooLongError
    assert error.message.startswith(f"inputs[2] has {SMALL_BYTES} bytes")
    assert (error.label, error.metadata["bytes"]) == ("MESSAGE_TOO_LARGE", str(SMALL_BYTES))
    assert error.metadata["maxBytes"] == str(SMALL_BYTES - 64)
    assert max(message.ByteSize() for message in script.messages) <= SMALL_BYTES


@pytest.mark.parametrize("order", ["input", "completion"])
@pytest.mark.parametrize("count", [1, 300])
def test_a_stream_of_nothing_else_ends(
    small: tuple[Client, Script], order: ResultOrder, count: int
) -> None:
    """Far more failures than the window has room for are all returned, with nothing sent."""
    client, script = small
    results = list(client.embed_stream(["x" * SMALL_BYTES] * count, order=order))
    assert [result.id for result in results] == [str(n) for n in range(count)]
    assert all(isinstance(result.error, InputTooLongError) for result in results)
    assert script.messages == []


@pytest.mark.parametrize("order", ["input", "completion"])
def test_failures_are_told_while_the_inputs_pause(order: ResultOrder) -> None:
    """A failure of the client waits neither for a response nor for the next input."""
    received = threading.Event()

    def inputs() -> Iterator[str]:
        yield from ("x" * SMALL_BYTES, "a", "x" * SMALL_BYTES)
        received.wait()

    with (
        serving() as (_, target),
        Client(target, max_request_bytes=SMALL_BYTES) as client,
        client.embed_stream(inputs(), order=order) as stream,
    ):
        seen = [next(stream).id for _ in range(3)]
        received.set()
        assert list(stream) == []
    assert sorted(seen) == ["0", "1", "2"]


@pytest.mark.parametrize("order", ["input", "completion"])
async def test_failures_are_told_while_asynchronous_inputs_pause(order: ResultOrder) -> None:
    """On an event loop, a failure waits neither for a response nor for the next input."""
    received = asyncio.Event()

    async def inputs() -> AsyncIterator[str]:
        for text in ("x" * SMALL_BYTES, "a", "x" * SMALL_BYTES):
            yield text
        await received.wait()

    with serving() as (_, target):
        async with (
            AsyncClient(target, max_request_bytes=SMALL_BYTES) as client,
            client.embed_stream(inputs(), order=order) as stream,
        ):
            seen = [(await anext(stream)).id for _ in range(3)]
            received.set()
            assert [result async for result in stream] == []
    assert sorted(seen) == ["0", "1", "2"]


async def test_a_failure_wakes_a_caller_that_waits() -> None:
    """With nothing in flight there is no response, and the failure is still returned."""
    waits, received = asyncio.Event(), asyncio.Event()

    async def inputs() -> AsyncIterator[str]:
        yield "a"
        await waits.wait()
        yield "x" * SMALL_BYTES
        await received.wait()

    with serving() as (_, target):
        async with (
            AsyncClient(target, max_request_bytes=SMALL_BYTES) as client,
            client.embed_stream(inputs(), batch_size=1) as stream,
        ):
            assert (await anext(stream)).error is None
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waits.set()
            assert isinstance((await waiting).error, InputTooLongError)
            received.set()
            assert [result async for result in stream] == []


def test_the_window_counts_inputs_that_failed_here() -> None:
    """Failures that the caller has not read use up the window, until it reads them."""
    state = ready_state(batch_size=1, window=4, max_bytes=1024)
    message = state.add("a")
    assert message is not None
    for _ in range(3):
        assert state.has_room()
        assert state.add("x" * 1024) is None
    assert not state.has_room()
    assert not state.has_failed()
    assert state.take_failed() == []
    results = state.receive(_answers("0"))
    assert [result.id for result in results] == ["0", "1", "2", "3"]
    assert state.has_room()


def test_what_waits_for_more_inputs_is_sent_before_a_failure() -> None:
    """A failure follows earlier inputs, which do not wait for later ones."""
    state = ready_state(batch_size=2, max_bytes=1024)
    assert state.add("a") is None
    message = state.add("x" * 1024)
    assert message is not None
    assert [each.id for each in message.batch.inputs] == ["0"]
    assert state.take_failed() == []


def test_failures_come_in_their_turn_within_an_answer() -> None:
    """In the order of the inputs, a failure is between the results around it."""
    state = ready_state(batch_size=1, window=8, max_bytes=1024)
    for text in ("x" * 1024, "a", "x" * 1024, "b", "c", "x" * 1024, "d"):
        state.add(text)
    assert [result.id for result in state.receive(_answers("1", "3"))] == ["0", "1", "2", "3"]
    failure = MessageTooLargeError("too large")
    assert state.outcome(failure) is failure
    assert failure.unanswered_ids == ("4", "5", "6")


def test_messages_are_divided_by_bytes(small: tuple[Client, Script]) -> None:
    """Inputs that are too large together use several messages, each as full as possible."""
    client, script = small
    script.max_in_flight_inputs, script.max_batch_inputs = 100, 50
    assert len(list(client.embed_stream(["x" * 1000] * 30))) == 30
    assert [len(message.batch.inputs) for message in script.messages] == [3] * 10
    script.messages.clear()
    assert len(list(client.embed_stream(["x" * (SMALL_BYTES - 64), "a", "b"]))) == 3
    assert [len(message.batch.inputs) for message in script.messages] == [1, 2]


def test_the_limit_of_a_server_is_learned(client_class: type[Client]) -> None:
    """A server with a lower limit rejects once; from then on the client sends no such text."""
    with serving(max_request_bytes=SMALL_BYTES) as (servicer, target):
        client = client_class(target, timeout_s=10)
        with pytest.raises(MessageTooLargeError) as caught:
            client.embed(["x" * 2500] * 2)
        error = caught.value
        assert int(error.metadata["bytes"]) > 5000
        assert error.metadata["maxBytes"] == str(SMALL_BYTES)
        assert "bytes; the limit is 4096: send fewer or shorter texts" in error.message
        with pytest.raises(InputTooLongError, match=r"texts\[0\] has 5000 bytes"):
            client.embed(["x" * 5000])
        results = list(client.embed_stream(["a", "x" * 5000, "b"]))
        assert [result.error is None for result in results] == [True, False, True]
        assert len(servicer.script.calls) == 1
        client.close()


def test_a_stream_that_meets_a_lower_limit_says_so(client_class: type[Client]) -> None:
    """The error has the sizes and the unanswered ids; the next stream succeeds."""
    with serving(max_request_bytes=SMALL_BYTES) as (_, target):
        client = client_class(target, timeout_s=10)
        inputs = [("first", "a"), ("large", "x" * 5000), ("last", "b")]
        stream = client.embed_stream(inputs, batch_size=1)
        answered: list[str] = []
        with pytest.raises(MessageTooLargeError, match="the limit is 4096") as caught:
            answered.extend(result.id for result in stream)
        assert answered == ["first"][: len(answered)]
        assert "large" in caught.value.unanswered_ids
        results = list(client.embed_stream(inputs, batch_size=1))
        assert [result.error is None for result in results] == [True, False, True]
        client.close()


@pytest.mark.parametrize(
    ("details", "metadata"),
    [
        (
            "SERVER: Received message larger than max (5000 vs. 1000)",
            {"bytes": "5000", "maxBytes": "1000"},
        ),
        (
            "grpc: received message larger than max (5000 vs. 1000)",
            {"bytes": "5000", "maxBytes": "1000"},
        ),
        (
            "Stream removed (CLIENT: Received message larger than max (5000 vs. 100))",
            {"answerBytes": "5000", "maxAnswerBytes": "100"},
        ),
        ("Decompressed message larger than max", {}),
    ],
)
def test_the_ways_to_say_that_a_message_is_too_large(
    details: str, metadata: dict[str, str]
) -> None:
    """The texts of gRPC's libraries are all recognized, requests and responses apart."""
    error = too_large_error(details)
    assert error is not None
    assert error.metadata == metadata
    assert error.reason == ""


def test_other_exhausted_resources_are_no_matter_of_size() -> None:
    """An overloaded server is not a message that is too large."""
    assert too_large_error("the queue is full") is None


@pytest.mark.parametrize("max_request_bytes", [0, 1023, 2**31])
def test_a_limit_out_of_range_is_refused(max_request_bytes: int) -> None:
    """A limit that no server can have is an error."""
    with pytest.raises(ValueError, match=f"max_request_bytes is {max_request_bytes}"):
        Client(max_request_bytes=max_request_bytes)


def test_a_limit_is_learned_once() -> None:
    """A limit only falls, never below the minimum, and only for its own kind of error."""
    limit = RequestLimit(5000)
    for reported, expected in ((9000, 5000), (3000, 3000), (4000, 3000), (10, 1024)):
        limit.learn(MessageTooLargeError("m", metadata={"maxBytes": str(reported)}))
        assert limit.max_bytes == expected
    limit.learn(MessageTooLargeError("m"))
    limit.learn(InputTooLongError("m", metadata={"maxBytes": "1024"}))
    assert limit.max_bytes == 1024


def _answers(*ids: str) -> pb.StreamEmbedResponse:
    results = [pb.StreamEmbedResult(id=each, error={"code": 3}) for each in ids]
    return pb.StreamEmbedResponse(results=pb.StreamEmbedResults(results=results))
