import itertools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.client import (
    AsyncClient,
    BadResponseError,
    Client,
    ConnectionFailedError,
    EmptyInputError,
    InputTooLongError,
    InvalidRequestError,
    OverloadedError,
    RerankResult,
)
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.rerank_state import RerankState
from embedgrpc.v1 import rerank_service_pb2 as pb
from tests.client.servicer import Refusal, Script, info

TOO_LARGE = "x" * 2**22


def test_each_query_has_its_ranking(client: Client, script: Script) -> None:
    """Ids come back; without one, the id is the position. The setup has the options."""
    inputs: list[Any] = [("abc", ["xyz", "abc", "ab"]), (("my", 1), "xy", ["xyz", "abc"])]
    stream = client.rerank_stream(
        inputs, model="m", top_n=1, query_prompt_text="", priority="interactive"
    )
    first, second = stream
    assert first.id == "0"
    assert [(each.index, each.score) for each in _ranking(first)] == [(1, 3.0)]
    assert (_ranking(first).model, _ranking(first).fingerprint) == ("model-0", "f1")
    assert second.id == ("my", 1)
    assert [(each.index, each.score) for each in _ranking(second)] == [(0, 2.0)]
    assert stream.input_tokens == 14
    setup = script.calls[0]
    assert (setup.model, setup.options.top_n, setup.allow_partial) == ("m", 1, False)
    assert setup.options.WhichOneof("query_prompt") == "query_prompt_text"
    assert (setup.options.priority, setup.max_response_bytes) == (1, 2**24)


def _ranking(result: RerankResult) -> Any:
    assert result.error is None
    return result.ranking


def test_a_query_that_fails_fails_alone(client: Client, script: Script) -> None:
    """Also one that the client does not send: too many documents, none, or one too large."""
    script.max_in_flight_inputs = 8
    inputs: list[Any] = [
        ("good", "a", ["a"]),
        ("asked", "fail:EMPTY_INPUT", ["a"]),
        ("many", "a", ["a"] * 9),
        ("none", "a", []),
        ("large", "a", ["a", TOO_LARGE]),
        ("together", "a" * 2**21, ["a" * 2**21]),
        ("last", "a", ["a"] * 8),
    ]
    results = {result.id: result for result in client.rerank_stream(inputs)}
    assert {name: type(result.error).__name__ for name, result in results.items()} == {
        "good": "NoneType",
        "asked": "EmptyInputError",
        "many": "InvalidRequestError",
        "none": "InvalidRequestError",
        "large": "InputTooLongError",
        "together": "InputTooLongError",
        "last": "NoneType",
    }
    assert results["asked"].ranking is None
    many, large = results["many"].error, results["large"].error
    assert isinstance(many, InvalidRequestError)
    assert (many.label, many.field_violations[0].field) == (
        "TOO_MANY_INPUTS",
        "inputs[2].documents",
    )
    assert isinstance(large, InputTooLongError)
    assert large.field_violations[0].field == "inputs[4].documents[1]"
    together = results["together"].error
    assert together is not None
    assert together.field_violations[0].field == "inputs[5].documents[0]"
    assert len(script.messages) == 2 + 2


def test_a_document_may_fail_alone(client: Client) -> None:
    """With `allow_partial`, the client leaves out what is too large, and indices stay."""
    documents = [TOO_LARGE, "abc", "fail:EMPTY_INPUT", "ab"]
    (result,) = client.rerank_stream([("abc", documents)], allow_partial=True)
    ranking = _ranking(result)
    assert [each.index for each in ranking] == [1, 3]
    assert {index: type(error) for index, error in ranking.errors.items()} == {
        0: InputTooLongError,
        2: EmptyInputError,
    }
    (result,) = client.rerank_stream([("abc", [TOO_LARGE])], allow_partial=True)
    assert isinstance(result.error, InputTooLongError)


def test_documents_are_divided_into_parts(client: Client, script: Script) -> None:
    """A part has at most the server's count and 1 MiB; only the first has the query."""
    script.max_in_flight_inputs, script.max_batch_inputs = 20, 4
    documents = ["x"] * 5 + ["y" * 2**20] * 2 + ["abc"]
    (result,) = client.rerank_stream([("abc", documents)])
    assert _ranking(result)[0].index == 7
    parts = [message.part for message in script.messages]
    assert [len(part.documents) for part in parts] == [4, 1, 1, 1, 1]
    assert [part.query for part in parts] == ["abc", "", "", "", ""]
    assert [part.more for part in parts] == [True] * 4 + [False]
    assert {part.id for part in parts} == {"0"}


def test_the_window_of_documents_is_never_exceeded(client: Client, script: Script) -> None:
    """A query waits until the window has room for all its documents."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 3
    read: list[int] = []

    def inputs() -> Iterator[Any]:
        for number in range(100):
            count = number % 8 + 1
            # This query is read ahead; those before it are in the window.
            ahead = sum(n % 8 + 1 for n in range(max(number - 1, 0))) - script.answered_count
            assert ahead <= 8
            read.append(number)
            yield number, "a", ["a"] * count

    assert [result.id for result in client.rerank_stream(inputs())] == list(range(100))
    assert read == list(range(100))


def test_an_endless_input_is_read_as_results_are(client: Client) -> None:
    """The client reads only the window, and one query, beyond the results."""
    read = itertools.count()
    with client.rerank_stream((next(read), "a", ["a", "b"]) for _ in itertools.count()) as stream:
        assert stream.ready().max_query_inputs == 8
        for number, result in enumerate(itertools.islice(stream, 200)):
            assert result.id == number
    assert next(read) < 200 + 20


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("abc", TypeError, r"inputs\[1\] is neither"),
        (("a",), TypeError, r"inputs\[1\] is neither"),
        (("a", "b"), TypeError, r"inputs\[1\].documents is one str"),
        ((None, ["b"]), TypeError, r"inputs\[1\].query is not a str"),
        (("a", [None]), TypeError, r"inputs\[1\].documents\[0\] is not a str"),
        (("a", ["\ud800 secret"]), ValueError, r"documents\[0\] has a lone surrogate"),
    ],
)
def test_a_query_that_cannot_be_sent_ends_the_stream(
    client: Client, item: Any, error: type[Exception], message: str
) -> None:
    """The results before it arrive, and the error has its position."""
    stream = client.rerank_stream([("a", ["b"]), item])
    assert next(stream).id == "0"
    with pytest.raises(error, match=message) as caught:
        next(stream)
    assert "secret" not in repr(caught.value)


def test_a_broken_stream_tells_which_queries_are_unanswered(client: Client, script: Script) -> None:
    """Every id that was read is in a result or in the error, the one that waits too."""
    script.end_stream_after = 4
    read: list[int] = []

    def inputs() -> Iterator[Any]:
        for number in range(100):
            read.append(number)
            yield number, "a", ["a"] * 2

    answered: list[int] = []
    with pytest.raises(ConnectionFailedError) as caught:
        answered.extend(result.id for result in client.rerank_stream(inputs(), reconnect_s=0))
    assert answered == [0, 1][: len(answered)]
    assert answered + list(caught.value.unanswered_ids) == read


def test_an_overloaded_server_is_asked_again_before_the_stream_begins(
    client: Client, script: Script
) -> None:
    """No query was read then; after three attempts the error is the server's."""
    refusal = Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (info("OVERLOADED"),), pushback_ms="1"
    )
    script.refusals.extend([refusal] * 2)
    assert len(list(client.rerank_stream([("a", ["b"])]))) == 1
    script.refusals.extend([refusal] * 3)
    with pytest.raises(OverloadedError):
        list(client.rerank_stream([("a", ["b"])]))
    assert len(script.calls) == 6


async def test_asynchronous_queries_are_taken(target: str) -> None:
    """Inputs may be an async iterable."""

    async def inputs() -> AsyncIterator[tuple[str, list[str]]]:
        for text in "abc":
            yield text, ["a", "b"]

    async with AsyncClient(target) as client:
        results = [result async for result in client.rerank_stream(inputs())]
    assert [result.id for result in results] == ["0", "1", "2"]


def _new_state() -> RerankState:
    return RerankState(
        [],
        model="",
        allow_partial=False,
        timeout_s=1.0,
        reconnect_s=60,
        request_limit=RequestLimit(2**22),
    )


def _state() -> RerankState:
    state = _new_state()
    ready = pb.StreamRerankReady(max_in_flight_inputs=4, max_part_inputs=2, max_query_inputs=4)
    state.receive(pb.StreamRerankResponse(ready=ready))
    return state


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), max_size=20),
    window=st.integers(1, 12),
    part=st.integers(1, 5),
    answer=st.randoms(use_true_random=False),
)
def test_parts_are_whole_queries_within_the_window(
    counts: list[int], window: int, part: int, answer: random.Random
) -> None:
    """Whatever the limits and the order of the answers, nothing is lost and no query mixed."""
    state = _new_state()
    terms = pb.StreamRerankReady(
        max_in_flight_inputs=window, max_part_inputs=part, max_query_inputs=window
    )
    state.receive(pb.StreamRerankResponse(ready=terms))
    waiting = list(enumerate(counts))
    received: dict[str, list[str]] = {}
    in_flight: list[str] = []
    results: list[RerankResult] = []
    while len(results) < len(counts):
        message = None
        if state.has_room():
            message = state.next_message()
            if message is None and waiting:
                number, count = waiting.pop(0)
                state.add((number, "q", [f"{number}-{index}" for index in range(count)]))
        if message is not None:
            sent = message.part
            assert len(sent.documents) <= part
            assert bool(sent.query) == (sent.id not in received)
            received.setdefault(sent.id, []).extend(sent.documents)
            if not sent.more:
                in_flight.append(sent.id)
                assert sum(len(received[each]) for each in in_flight) <= window
        elif in_flight:
            done = in_flight.pop(answer.randrange(len(in_flight)))
            result = pb.StreamRerankResult(id=done, ranking=pb.Ranking())
            results += state.receive(pb.StreamRerankResponse(result=result))
        results += state.take_failed()
    state.end_inputs()
    assert state.outcome(None) is None
    assert sorted(result.id for result in results) == list(range(len(counts)))
    for position, documents in received.items():
        assert documents == [f"{position}-{index}" for index in range(counts[int(position)])]
    too_many = [result.id for result in results if result.error is not None]
    assert sorted(too_many) == [n for n, count in enumerate(counts) if count > window]


def _failed(position: str) -> pb.StreamRerankResponse:
    return pb.StreamRerankResponse(
        result=pb.StreamRerankResult(id=position, error={"code": 3, "reason": 1})
    )


def test_a_query_that_fails_early_is_sent_to_its_end() -> None:
    """The server drops the parts, but needs the last to know where the next query begins."""
    state = _state()
    state.add(("a", ["b"] * 4))
    assert state.has_room()
    assert state.next_message() is not None
    assert [result.id for result in state.receive(_failed("0"))] == ["0"]
    assert state.has_room()
    last = state.next_message()
    assert last is not None
    assert not last.part.more
    assert state.next_message() is None
    state.end_inputs()
    assert state.outcome(None) is None


@pytest.mark.parametrize(
    "result",
    [
        pb.StreamRerankResult(id="0", ranking=pb.Ranking()),
        pb.StreamRerankResult(id="7", ranking=pb.Ranking()),
        pb.StreamRerankResult(id="0"),
    ],
)
def test_a_result_out_of_step_is_refused(result: pb.StreamRerankResult) -> None:
    """A result for a query that was not sent, or without an outcome, ends the stream."""
    state = _state()
    state.add(("a", ["b"]))
    if not result.HasField("ranking"):
        assert state.next_message() is not None
    with pytest.raises(BadResponseError):
        state.receive(pb.StreamRerankResponse(result=result))
