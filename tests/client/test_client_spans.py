"""Streams whose inputs come with the spans of their chunks."""

from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.client import Client, ConnectionFailedError, StreamResult
from embedgrpc.client.embed_state import EmbedState
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import vector_of
from tests.client.servicer import Refusal, Script, info

_GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "gone")
_STOPPING = Refusal(grpc.StatusCode.UNAVAILABLE, "stopping", (info("SHUTTING_DOWN"),))
_TEXTS = {f"id-{number}": f"some text {number}" for number in range(40)}
_SPANS = {name: [(0, 4), (5, len(text))] for name, text in _TEXTS.items()}


def _inputs() -> list[tuple[str, str, list[tuple[int, int]]]]:
    return [(name, text, _SPANS[name]) for name, text in _TEXTS.items()]


def _check(results: list[StreamResult]) -> None:
    """Check that every input has one result, in order: with its own chunks."""
    assert [one.id for one in results] == list(_TEXTS)
    for one in results:
        text, spans = _TEXTS[one.id], _SPANS[one.id]
        assert one.chunks is not None
        pairs = zip(one.chunks.character_starts, one.chunks.character_ends, strict=True)
        assert list(pairs) == spans
        wanted = [vector_of(text[start:end]) for start, end in spans]
        np.testing.assert_array_equal(one.chunks.vectors, wanted)


def test_spans_are_sent_again_after_a_break(client: Client, script: Script) -> None:
    """However often the call ends, each input keeps the spans that belong to it."""
    script.breaks.extend([(4, _GONE), (12, _STOPPING), (13, _GONE)])
    stream = client.embed_stream(_inputs(), with_spans=True)
    _check(list(stream))
    assert stream.reconnect_count == 3
    sent = [one for message in script.messages for one in message.batch.inputs]
    assert {one.id for one in sent} == {str(number) for number in range(len(_TEXTS))}
    for one in sent:
        assert len(one.spans.character_starts) == len(one.spans.character_ends) == 2
    (setup,) = {call.SerializeToString() for call in script.calls}
    options = pb.StreamEmbedSetup.FromString(setup).options
    assert options.chunking == pb.Chunking(spans=pb.ChunkBySpans())


def test_what_was_sent_is_sent_again_as_it_was() -> None:
    """The message of another call equals that of the first."""
    state = EmbedState(
        [],
        model="",
        with_spans=True,
        order="input",
        batch_size=2,
        timeout_s=1.0,
        reconnect_s=60,
        request_limit=RequestLimit(2**20),
    )
    ready = pb.StreamEmbedResponse(
        ready=pb.StreamEmbedReady(max_in_flight_inputs=4, max_batch_inputs=4)
    )
    state.receive(ready)
    assert state.add(("a", "one two", [(0, 3)])) is None
    sent = state.add(("b", "three", [(0, 2), (1, 5)]))
    ends = [list(one.spans.character_ends) for one in sent.batch.inputs]
    assert ends == [[3], [2, 5]]
    state.restart()
    state.receive(ready)
    assert state.next_message() == sent
    assert state.remaining() == [("a", "one two", [(0, 3)]), ("b", "three", [(0, 2), (1, 5)])]


@pytest.mark.parametrize("by_id", [False, True])
def test_what_remains_is_input_of_another_stream(
    client: Client, script: Script, *, by_id: bool
) -> None:
    """With its spans, whether they were read or not."""
    inputs: Any = {name: (text, _SPANS[name]) for name, text in _TEXTS.items()}
    script.breaks.append((12, _GONE))
    stream = client.embed_stream(
        inputs if by_id else iter(_inputs()), with_spans=True, reconnect_s=0
    )
    results: list[StreamResult] = []
    with pytest.raises(ConnectionFailedError):
        results.extend(stream)
    remaining = list(stream.remaining())
    assert [one[0] for one in remaining] == list(_TEXTS)[len(results) :]
    results.extend(client.embed_stream(remaining, with_spans=True))
    _check(results)


def test_inputs_without_ids_have_their_place(client: Client) -> None:
    """Pairs of a text and its spans; a text may have none, and spans may be an array."""
    inputs: list[Any] = [("one two", [(4, 7)]), ("three", ()), ("four", np.array([[0, 2], [1, 4]]))]
    results = list(client.embed_stream(inputs, with_spans=True, batch_size=1))
    assert [one.id for one in results] == ["0", "1", "2"]
    counts = [0 if one.chunks is None else len(one.chunks) for one in results]
    assert counts == [1, 0, 2]


def test_a_message_has_at_most_8192_spans(client: Client, script: Script) -> None:
    """More would be refused: they travel in several messages, also when they are sent again."""
    script.breaks.append((1, _GONE))
    inputs = [("a" * 10, [(0, 1)] * 3000) for _ in range(7)]
    results = list(client.embed_stream(inputs, with_spans=True))
    assert [len(one.chunks or ()) for one in results] == [3000] * 7
    for message in script.messages:
        assert sum(len(one.spans.character_ends) for one in message.batch.inputs) <= 8192
        assert len(message.batch.inputs) <= 2
    assert max(len(message.batch.inputs) for message in script.messages) == 2


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ("text", TypeError, r"inputs\[0\] is neither a pair of a str and spans"),
        (("id", "text"), TypeError, r"the spans of inputs\[0\] are not all pairs"),
        (("id", 1, [(0, 1)]), TypeError, r"inputs\[0\] is not a str"),
        (("text", [(0, 1, 2)]), TypeError, "not all pairs of whole numbers"),
        (("text", [(0, 1.5)]), TypeError, "not all pairs of whole numbers"),
        (("text", None), TypeError, "not all pairs of whole numbers"),
        (("text", [(0, 1), (0, 2**31)]), ValueError, r"span 1 of inputs\[0\] has a number beyond"),
    ],
)
def test_wrong_inputs_are_refused(
    client: Client, item: Any, error: type[Exception], says: str
) -> None:
    """The error names the input; it remains, as it was given."""
    stream = client.embed_stream([item], with_spans=True)
    with pytest.raises(error, match=says):
        list(stream)


def test_spans_stand_beside_the_texts_of_a_stream(client: Client) -> None:
    """Not in the options, and not beside other ways to chunk."""
    with pytest.raises(ValueError, match="chunk_spans is for embed: set with_spans"):
        client.embed_stream(["a"], chunk_spans=[[(0, 1)]])
    with pytest.raises(ValueError, match="only one of"):
        client.embed_stream(_inputs(), with_spans=True, chunk_sentences=2)
    with pytest.raises(TypeError, match=r"inputs\[0\] is neither a str nor a pair"):
        list(client.embed_stream(_inputs()))


def test_a_dict_of_other_values_is_refused(client: Client) -> None:
    """Values are pairs of a text and its spans."""
    inputs: dict[str, Any] = {"a": "text"}
    with pytest.raises(TypeError, match="neither a pair of a str and spans"):
        list(client.embed_stream(inputs, with_spans=True))
