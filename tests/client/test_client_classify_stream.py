"""`classify_stream` of both clients. What it shares with `embed_stream` is tested there."""

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from embedgrpc.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    EmptyInputError,
    InputTooLongError,
    ModelNotFoundError,
)
from embedgrpc.client.classifications import decode_classify_ready, decode_classify_result
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.errors import BadResponseError
from embedgrpc.v1 import classify_service_pb2 as pb
from tests.client.servicer import Script


def test_inputs_of_both_forms_are_answered_in_order(client: Client) -> None:
    """Texts and pairs in one stream, each with its labels, over several messages."""
    inputs: list[Any] = ["abc", ("a", "bcde"), *(f"text {number}" for number in range(20))]
    with client.classify_stream(inputs) as stream:
        ready = stream.ready()
        assert (ready.model, ready.revision, ready.fingerprint) == ("model-0", "r1", "f1")
        results = list(stream)
        assert stream.input_tokens == len(inputs)
    assert [one.id for one in results] == [str(number) for number in range(len(inputs))]
    scores = [one.classification.labels[0].score for one in results[:3]]  # type: ignore[union-attr] # none failed
    assert scores == [-3.0, -5.0, -6.0]
    assert results[0].classification is not None
    assert results[0].classification.best.label == "long"
    assert results[0].classification.token_count == 3


def test_ids_of_the_caller_come_back(client: Client, script: Script) -> None:
    """With ids, texts and pairs keep theirs, of any type; on the wire they are positions."""
    inputs: list[Any] = [(7, "abc"), (("x", 1), ("a", "b")), ("c", "d")]
    results = list(client.classify_stream(inputs, with_ids=True))
    assert [one.id for one in results] == [7, ("x", 1), "c"]
    sent = [one for message in script.messages for one in message.batch.inputs]
    assert sent == [
        pb.StreamClassifyInput(id="0", text="abc"),
        pb.StreamClassifyInput(id="1", pair=pb.TextPair(first="a", second="b")),
        pb.StreamClassifyInput(id="2", text="d"),
    ]


def test_options_reach_the_server(client: Client, script: Script) -> None:
    """The order of labels is an option, that of results has a name of its own."""
    list(
        client.classify_stream(
            ["a"],
            model="m",
            result_order="completion",
            score_function="softmax",
            top_k=2,
            order="model",
            priority="interactive",
        )
    )
    assert script.calls[-1] == pb.StreamClassifySetup(
        model="m",
        options=pb.ClassifyOptions(
            score_function="SCORE_FUNCTION_SOFTMAX",
            top_k=2,
            order="LABEL_ORDER_MODEL",
            priority="PRIORITY_INTERACTIVE",
        ),
        order="RESULT_ORDER_COMPLETION",
        max_response_bytes=RESPONSE_BYTES_MAX,
    )


def test_an_input_may_fail_alone(client: Client) -> None:
    """At the server or here, in its place in the order; the stream goes on."""
    large = "x" * 2**24
    empty = "fail:EMPTY_INPUT"
    inputs: list[Any] = ["a", empty, large, ("b", large), (empty, "c"), "d"]
    results = list(client.classify_stream(inputs))
    none = type(None)
    kinds = [none, EmptyInputError, InputTooLongError, InputTooLongError, EmptyInputError, none]
    assert [type(one.error) for one in results] == kinds
    assert [one.classification is None for one in results] == [kind is not none for kind in kinds]


def test_endless_inputs_are_read_as_far_as_the_window(client: Client, script: Script) -> None:
    """The client reads no further than the server has room for."""
    taken: list[str] = []

    def inputs() -> Iterator[str]:
        for number in itertools.count():
            taken.append(str(number))
            yield str(number)

    with client.classify_stream(inputs()) as stream:
        for number, result in enumerate(itertools.islice(stream, 200)):
            assert result.id == str(number)
            assert len(taken) <= number + 4 * script.max_in_flight_inputs
    assert script.stream_ended.wait(60)


def test_what_a_broken_stream_left_is_sent_again(client: Client, script: Script) -> None:
    """The error has the ids without a result: with them, a new stream gives the rest."""
    script.end_stream_after = 4
    inputs = {number * number: f"text {number}" for number in range(20)}
    answered: list[Any] = []
    with pytest.raises(ConnectionFailedError) as caught:
        answered.extend(client.classify_stream(inputs, reconnect_s=0))
    left = [(one, inputs[one]) for one in inputs if one not in {each.id for each in answered}]
    assert set(caught.value.unanswered_ids) <= {one for one, _ in left}
    script.end_stream_after = None
    answered.extend(client.classify_stream(left, with_ids=True))
    assert [one.id for one in answered] == list(inputs)


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (1, "neither a text nor a pair"),
        (("a", "b", "c"), "neither a text nor a pair"),
        (("a", 1), r"inputs\[0\]\[1\] is not a str"),
    ],
)
def test_an_item_of_another_type_ends_the_stream(client: Client, item: Any, error: str) -> None:
    """The error names its place and what is wrong."""
    with pytest.raises(TypeError, match=error):
        list(client.classify_stream([item]))
    with pytest.raises(TypeError, match="a pair of an id and an input"):
        list(client.classify_stream(["text"], with_ids=True))


def test_bad_arguments_are_refused_at_once(client: Client) -> None:
    """Before a call is made, and a model that the server lacks by the first result."""
    with pytest.raises(TypeError, match="is one str"):
        client.classify_stream("text")
    with pytest.raises(ValueError, match="batch_size"):
        client.classify_stream(["a"], batch_size=0)
    with pytest.raises(ModelNotFoundError):
        list(client.classify_stream(["a"], model="absent"))


async def test_asynchronous_inputs(server: tuple[Any, str]) -> None:
    """The client for asyncio reads asynchronous iterables."""

    async def inputs() -> AsyncIterator[tuple[str, str]]:
        for number in range(10):
            yield "a", str(number)

    async with AsyncClient(server[1]) as client:
        results = [one async for one in client.classify_stream(inputs())]
    assert [one.id for one in results] == [str(number) for number in range(10)]


def test_malformed_responses_are_refused() -> None:
    """Terms without room, and a result without an outcome."""
    with pytest.raises(BadResponseError, match="no input"):
        decode_classify_ready(pb.StreamClassifyReady(max_in_flight_inputs=1))
    with pytest.raises(BadResponseError, match="neither classification nor error"):
        decode_classify_result(pb.StreamClassifyResult(id="0"), 1)
