"""Streams that go on after the connection broke or the server stopped."""

import asyncio
import itertools
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    EmbedGrpcError,
    ModelChangedError,
    ShuttingDownError,
    StreamResult,
    UnauthenticatedError,
)
from embedgrpc.client.attempts import Reconnects
from embedgrpc.client.embed_state import EmbedState
from embedgrpc.client.enums import ResultOrder
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import stream_result, vector_of
from tests.client.servicer import Refusal, Script, info, serving

_PATIENCE_S = 60.0
_GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "gone")
_STOPPING = Refusal(grpc.StatusCode.UNAVAILABLE, "stopping", (info("SHUTTING_DOWN"),))
_CANCELLED = Refusal(grpc.StatusCode.CANCELLED, "cancelled by a proxy")

_TEXTS = {f"id-{number}": f"text {number}" for number in range(50)}
_INPUTS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(_TEXTS.items()),
    "dict": lambda: _TEXTS,
    "generator": lambda: (pair for pair in _TEXTS.items()),
}
inputs_of_each_kind = pytest.mark.parametrize("inputs", _INPUTS.values(), ids=_INPUTS)


def _check_all(results: list[StreamResult]) -> None:
    """Check that every input has one result, in order: its own vector."""
    assert [result.id for result in results] == list(_TEXTS)
    for result in results:
        np.testing.assert_array_equal(result.vector, vector_of(_TEXTS[result.id]))


@inputs_of_each_kind
def test_every_input_has_one_result_however_often_the_call_ends(
    client: Client, script: Script, inputs: Callable[[], Any]
) -> None:
    """The client sends again what has no result, and returns the results in order."""
    script.breaks.extend([(4, _GONE), (12, _STOPPING), (13, _CANCELLED), (30, _GONE)])
    stream = client.embed_stream(inputs())
    _check_all(list(stream))
    assert len(script.calls) == stream.reconnect_count + 1 == 5
    assert not script.breaks
    assert list(stream.remaining()) == []


def test_results_in_any_order_are_complete_too(client: Client, script: Script) -> None:
    """With the order of completion, what comes last on a call is not sent again."""
    script.reverse = True
    script.breaks.extend([(4, _GONE), (12, _GONE)])
    ids = [result.id for result in client.embed_stream(_TEXTS, order="completion")]
    assert ids != list(_TEXTS)
    assert sorted(ids) == sorted(_TEXTS)


def test_rankings_and_classifications_go_on_too(client: Client, script: Script) -> None:
    """Queries and pairs are sent again with all that belongs to them."""
    script.breaks.extend([(4, _GONE), (12, _STOPPING)])
    queries = ((number, "abc", ["xyz", "abc", "ab"]) for number in range(12))
    rankings = list(client.rerank_stream(queries))
    assert [each.id for each in rankings] == list(range(12))
    for each in rankings:
        assert each.ranking is not None
        assert each.ranking[0].index == 1
    script.breaks.extend([(script.answered_count + 4, _GONE)])
    pairs = [("a", "b" * number) for number in range(20)]
    classifications = list(client.classify_stream(pairs))
    assert [each.id for each in classifications] == [str(number) for number in range(20)]
    assert len(script.calls) == 3 + 2


def test_a_server_that_starts_again_is_found(client_class: type[Client]) -> None:
    """The client connects again at the same address, and the window holds on each call."""
    with serving() as (servicer, target):
        servicer.script.max_in_flight_inputs, servicer.script.max_batch_inputs = 16, 8
        servicer.script.hold_answers = threading.Event()
        client = client_class(target, timeout_s=_PATIENCE_S)
        stream = client.embed_stream(_TEXTS, batch_size=8)
        stream.ready()
        waiting = threading.Thread(target=servicer.script.window_full.wait)
        waiting.start()
        results: list[StreamResult] = []
        reading = threading.Thread(target=lambda: results.extend(stream))
        reading.start()
        waiting.join()
    # The server is gone, with sixteen inputs that it has not answered.
    servicer.script.hold_answers.set()
    with serving(target) as (servicer, _):
        servicer.script.max_in_flight_inputs, servicer.script.max_batch_inputs = 4, 2
        reading.join()
        sizes = {len(message.batch.inputs) for message in servicer.script.messages}
    client.close()
    _check_all(results)
    assert sizes == {2}


@inputs_of_each_kind
def test_a_stream_that_gives_up_has_what_remains(
    client_class: type[Client], inputs: Callable[[], Any]
) -> None:
    """Results and remaining inputs together are all inputs; another stream takes the latter."""
    with serving() as (servicer, target):
        client = client_class(target, timeout_s=_PATIENCE_S)
        stream = client.embed_stream(inputs(), reconnect_s=0)
        servicer.script.breaks.append((12, _GONE))
        results: list[StreamResult] = []
        with pytest.raises(ConnectionFailedError):
            results.extend(stream)
        remaining = list(stream.remaining())
        assert [result.id for result in results] + [one for one, _ in remaining] == list(_TEXTS)
        results += client.embed_stream(remaining)
        _check_all(results)
        client.close()


@inputs_of_each_kind
def test_a_stream_that_never_connected_has_everything(
    client_class: type[Client], inputs: Callable[[], Any]
) -> None:
    """Nothing listens there: the error comes at once, and no input is lost."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    client = client_class(target, timeout_s=_PATIENCE_S)
    stream = client.embed_stream(inputs(), reconnect_s=3600)
    with pytest.raises(ConnectionFailedError):
        next(stream)
    assert list(stream.remaining()) == list(_TEXTS.items())
    client.close()


def test_texts_without_an_id_keep_their_position(client: Client, script: Script) -> None:
    """What remains of plain texts are pairs with the positions as ids, read or not."""
    script.breaks.append((4, _GONE))
    texts = [f"text {number}" for number in range(30)]
    stream = client.embed_stream(texts, reconnect_s=0)
    with pytest.raises(ConnectionFailedError):
        list(stream)
    remaining = list(stream.remaining())
    first = int(remaining[0][0])
    assert first <= 4
    assert remaining == [(str(number), texts[number]) for number in range(first, 30)]


def test_results_that_the_caller_did_not_take_remain(client: Client, script: Script) -> None:
    """After `close`, the inputs of results that had arrived are among those that are left."""
    script.max_in_flight_inputs, script.max_batch_inputs = 40, 10
    for taken in (1, 10, 13):
        stream = client.embed_stream(_TEXTS)
        results = list(itertools.islice(stream, taken))
        stream.close()
        remaining = list(stream.remaining())
        assert [result.id for result in results] + [one for one, _ in remaining] == list(_TEXTS)


def test_an_input_that_is_rejected_remains(client: Client) -> None:
    """The item that ended the stream comes where it was, as it was given."""
    stream = client.embed_stream(["a", 7, "b"])  # type: ignore[arg-type] # on purpose
    assert next(stream).id == "0"
    with pytest.raises(TypeError, match=r"inputs\[1\]"):
        next(stream)
    assert list(stream.remaining()) == [7, ("2", "b")]


def test_an_input_that_comes_late_goes_to_the_next_call(target: str, script: Script) -> None:
    """The call ends while the iterable blocks: what it yields then is sent once, in order."""
    may_go_on = threading.Event()
    script.breaks.append((4, _GONE))

    def inputs() -> Iterator[tuple[str, str]]:
        for number, pair in enumerate(_TEXTS.items()):
            if number == 4:
                may_go_on.wait()
            yield pair

    def release() -> None:
        while len(script.calls) < 2:
            pass
        may_go_on.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    with Client(target, timeout_s=_PATIENCE_S) as client:
        _check_all(list(client.embed_stream(inputs(), batch_size=4)))
    releasing.join()


async def test_an_asynchronous_input_that_comes_late_goes_to_the_next_call(
    target: str, script: Script
) -> None:
    """The end of a call does not cancel the caller's iterator."""
    may_go_on = asyncio.Event()
    script.breaks.append((4, _GONE))

    async def inputs() -> AsyncIterator[tuple[str, str]]:
        for number, pair in enumerate(_TEXTS.items()):
            if number == 4:
                await may_go_on.wait()
            yield pair

    def release() -> None:
        while len(script.calls) < 2:
            pass
        loop.call_soon_threadsafe(may_go_on.set)

    loop = asyncio.get_running_loop()
    releasing = threading.Thread(target=release)
    releasing.start()
    async with AsyncClient(target, timeout_s=_PATIENCE_S) as client:
        _check_all([one async for one in client.embed_stream(inputs(), batch_size=4)])
    releasing.join()


async def test_what_remains_of_asynchronous_inputs(target: str, script: Script) -> None:
    """The iterator of the caller goes on where the stream stopped reading."""
    script.breaks.append((4, _GONE))

    async def inputs() -> AsyncIterator[tuple[str, str]]:
        for pair in _TEXTS.items():
            yield pair

    async def collect(stream: AsyncIterator[StreamResult]) -> None:
        async for result in stream:
            results.append(result)

    results: list[StreamResult] = []
    async with AsyncClient(target, timeout_s=_PATIENCE_S) as client:
        stream = client.embed_stream(inputs(), reconnect_s=0)
        with pytest.raises(ConnectionFailedError):
            await collect(stream)
        results += [one async for one in client.embed_stream(stream.remaining())]
    assert {result.id for result in results} == set(_TEXTS)


def test_another_model_ends_the_stream(client: Client, script: Script) -> None:
    """A stream never returns vectors of two embedding spaces; the error names both."""
    script.breaks.append((8, _GONE))
    script.fingerprints = ["f1", "f2"]
    stream = client.embed_stream(_TEXTS)
    with pytest.raises(ModelChangedError) as caught:
        list(stream)
    assert caught.value.metadata == {"fingerprint": "f2", "was": "f1"}
    assert list(stream.remaining())


def test_an_error_that_another_call_cannot_help_ends_the_stream(
    client: Client, script: Script
) -> None:
    """Expired credentials, for instance: the client does not ask again and again."""
    expired = Refusal(grpc.StatusCode.UNAUTHENTICATED, "expired", (info("UNAUTHENTICATED"),))
    # grpc.aio may lose a status: then another call shows it.
    script.breaks.extend([(4, expired)] * 20)
    with pytest.raises(UnauthenticatedError):
        list(client.embed_stream(_TEXTS))
    assert script.breaks


def test_the_time_to_reconnect_has_an_end(client_class: type[Client]) -> None:
    """A server that is gone for good is given up, and what is left remains."""
    with serving() as (_, target):
        client = client_class(target, timeout_s=_PATIENCE_S)
        stream = client.embed_stream(_TEXTS, reconnect_s=0.5)
        results = [next(stream)]
    with pytest.raises(ConnectionFailedError):
        results.extend(stream)
    assert [each.id for each in results] + [one for one, _ in stream.remaining()] == list(_TEXTS)
    client.close()


@pytest.mark.parametrize("reconnect_s", [-1, float("inf"), float("nan")])
def test_the_time_to_reconnect_is_finite(client: Client, reconnect_s: float) -> None:
    """Everything has a bound."""
    with pytest.raises(ValueError, match="reconnect_s is"):
        client.embed_stream([], reconnect_s=reconnect_s)


def test_waits_grow_and_start_anew_after_a_result() -> None:
    """The wait doubles up to five seconds; the server may ask for a longer one."""
    reconnects = Reconnects(3600)
    waits = [reconnects.delay_s(ConnectionFailedError("gone")) or 0 for _ in range(10)]
    for wait, longest in zip(waits, [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5, 5], strict=True):
        assert longest / 2 <= wait <= longest
    reconnects.succeed()
    assert (reconnects.delay_s(ConnectionFailedError("gone")) or 1) <= 0.2
    asked = ShuttingDownError("stopping", retry_delay_s=7.5)
    assert reconnects.delay_s(asked) == 7.5
    assert Reconnects(0).delay_s(asked) is None


def _state(order: ResultOrder, batch_size: int, *, max_bytes: int = 2**22) -> EmbedState:
    return EmbedState(
        [],
        model="",
        order=order,
        batch_size=batch_size,
        timeout_s=1.0,
        reconnect_s=60,
        request_limit=RequestLimit(max_bytes),
    )


def _ready(window: int, batch: int, *, max_request_bytes: int = 0) -> pb.StreamEmbedResponse:
    ready = pb.StreamEmbedReady(max_in_flight_inputs=window, max_batch_inputs=batch)
    ready.limits.max_request_bytes = max_request_bytes
    return pb.StreamEmbedResponse(ready=ready)


def _answers(inputs: list[pb.StreamEmbedInput]) -> pb.StreamEmbedResponse:
    results = [stream_result(each, pb.EmbedOptions()) for each in inputs]
    return pb.StreamEmbedResponse(results=pb.StreamEmbedResults(results=results))


@pytest.mark.parametrize("order", ["input", "completion"])
def test_inputs_that_a_stopping_server_fails_are_sent_again(order: ResultOrder) -> None:
    """Their errors are no results; with the order of the inputs, later results wait, too."""
    state = _state(order, 4)
    state.receive(_ready(8, 4))
    message = [state.add(text) for text in ("a", "fail:SHUTTING_DOWN", "c", "d")][-1]
    results = state.receive(_answers(list(message.batch.inputs)))
    first = ["0"] if order == "input" else ["0", "2", "3"]
    assert [result.id for result in results] == first
    assert [one for one, _ in state.remaining()] == [
        str(number) for number in range(4) if str(number) not in first
    ]
    state.restart()
    assert not state.has_room()
    state.receive(_ready(8, 4))
    assert state.has_room()
    again = [each.id for each in state.next_message().batch.inputs]
    assert [*first, *again] == sorted(["0", "1", "2", "3"], key=[*first, *again].index)
    assert len(first) + len(again) == 4
    assert state.next_message() is None


def test_an_input_that_the_next_server_has_no_room_for_fails_alone() -> None:
    """The server after a restart takes shorter messages: the result is an error, in its turn."""
    state = _state("input", 2)
    state.receive(_ready(8, 4))
    for text in ("a", "x" * 3000, "b", "c"):
        state.add(text)
    state.restart()
    state.receive(_ready(8, 4, max_request_bytes=1024))
    sent: list[Any] = []
    while (message := state.next_message()) is not None:
        sent += message.batch.inputs
    assert [each.id for each in sent] == ["0", "2", "3"]
    results = state.receive(_answers(sent))
    assert [result.id for result in results] == ["0", "1", "2", "3"]
    assert [type(result.error).__name__ for result in results][1] == "InputTooLongError"


@settings(deadline=None)
@given(
    count=st.integers(0, 60),
    batch_size=st.integers(1, 12),
    order=st.sampled_from(["input", "completion"]),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_lost_or_doubled(
    count: int, batch_size: int, order: ResultOrder, seed: int
) -> None:
    """Whatever the windows, the moments of the breaks and the order of the answers."""
    chance = random.Random(seed)  # noqa: S311 -- not a secret
    state = _state(order, batch_size)
    waiting = [f"text {number}" for number in range(count)]
    in_flight: list[pb.StreamEmbedInput] = []
    results: list[StreamResult] = []
    window = 0
    while not state.has_ended():
        if not state.accepted:
            window = chance.randint(1, 15)
            state.receive(_ready(window, chance.randint(1, 15)))
        if chance.random() < 0.1:
            in_flight = []
            state.restart()
            continue
        message = None
        if state.has_room():
            message = state.next_message()
            if message is None and not state.inputs_ended:
                message = state.add(waiting.pop(0)) if waiting else state.end_inputs()
        if message is not None:
            in_flight += message.batch.inputs
            assert len(in_flight) <= window
        elif in_flight:
            number = 1 if order == "input" else chance.randint(1, len(in_flight))
            if order == "completion":
                chance.shuffle(in_flight)
            results += state.receive(_answers(in_flight[:number]))
            in_flight = in_flight[number:]
        assert len(state.remaining()) <= window + 15
    ids = [int(result.id) for result in results]
    assert (ids if order == "input" else sorted(ids)) == list(range(count))
    assert state.remaining() == []


def test_an_error_of_the_server_is_not_hidden_by_a_closed_client(
    target: str, script: Script
) -> None:
    """Closing the client ends a stream; it does not start another call."""
    script.hold_answers = threading.Event()
    client = Client(target, timeout_s=_PATIENCE_S)
    stream = client.embed_stream(_TEXTS)
    stream.ready()
    script.window_full.wait()
    client.close()
    with pytest.raises(EmbedGrpcError) as caught:
        next(stream)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    script.hold_answers.set()
