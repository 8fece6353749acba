import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.client import (
    AsyncClient,
    BadResponseError,
    Client,
    ConnectionFailedError,
    DeadlineExpiredError,
    InputTooLongError,
    ModelNotFoundError,
    StreamResult,
)
from embedgrpc.client.embed_state import EmbedState
from embedgrpc.client.enums import ResultOrder
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.stream import _Exchange
from embedgrpc.client.stream_state import MESSAGE_BYTES_MAX
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import vector_of
from tests.client.servicer import Script


def test_results_come_in_the_order_of_the_inputs(client: Client, script: Script) -> None:
    """The id of a text without one is its position; every result is complete."""
    texts = [f"text {number}" for number in range(30)] + ["long one"]
    stream = client.embed_stream(texts)
    results = list(stream)
    assert [result.id for result in results] == [str(number) for number in range(31)]
    for result, text in zip(results, texts, strict=True):
        np.testing.assert_array_equal(result.vector, vector_of(text))
        assert (result.token_count, result.error, result.scale) == (len(text), None, 1.0)
    assert [result.truncated for result in results] == [False] * 30 + [True]
    assert stream.input_tokens == 31
    assert list(stream) == []
    assert script.stream_ended.wait(5)


def test_ids_come_back_as_they_were_given(client: Client) -> None:
    """Any object may be an id, even twice; positions travel on the wire."""
    inputs: list[tuple[Any, str]] = [(7, "a"), (("k", 1), "b"), (7, "c"), ("x" * 999, "d")]
    results = list(client.embed_stream(inputs))
    assert [result.id for result in results] == [7, ("k", 1), 7, "x" * 999]


def test_completion_order_is_matched_by_id(client: Client, script: Script) -> None:
    """Results in another order keep the ids of their inputs."""
    script.reverse = True
    results = list(client.embed_stream([f"t{n}" for n in range(8)], order="completion"))
    assert script.calls[0].order == 2
    assert sorted(result.id for result in results) == [str(n) for n in range(8)]
    assert [result.id for result in results] != [str(n) for n in range(8)]
    for result in results:
        np.testing.assert_array_equal(result.vector, vector_of(f"t{result.id}"))


def test_a_bad_input_fails_alone(client: Client) -> None:
    """The result of a bad input has an `EmbedGrpcError`; the stream goes on."""
    results = list(client.embed_stream(["a", "fail:INPUT_TOO_LONG", "b"]))
    assert [result.error is None for result in results] == [True, False, True]
    error = results[1].error
    assert type(error) is InputTooLongError
    assert (error.reason, error.message) == ("INPUT_TOO_LONG", "as asked")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (results[1].vector, results[1].token_count, results[1].truncated) == (None, 0, False)


def test_encodings_and_representations_come_as_in_a_batch(client: Client) -> None:
    """int8 rows have their scale; other representations are decoded."""
    (result,) = client.embed_stream(["a b"], encoding="int8", representations=["dense"])
    assert result.vector is not None
    assert result.vector.dtype == np.int8
    assert result.scale == 0.5
    (result,) = client.embed_stream(["a b"], representations=["sparse", "multi_vector"])
    assert result.vector is None
    assert result.sparse is not None
    assert result.multi_vector is not None
    assert result.multi_vector.values.shape[0] == 2


def test_ready_tells_the_terms_before_any_result(client: Client) -> None:
    """`ready` returns fingerprint and limits before an input is read."""
    taken: list[str] = []
    with client.embed_stream(_noted(["a", "b"], taken)) as stream:
        ready = stream.ready()
        assert (ready.model, ready.fingerprint, ready.max_in_flight_inputs) == ("model-0", "f1", 8)
        assert stream.ready() is ready
        assert len(list(stream)) == 2
    with client.embed_stream(["a"]) as closed:
        closed.close()
        with pytest.raises(RuntimeError, match="closed"):
            closed.ready()


def _noted(items: Any, taken: list[Any]) -> Iterator[Any]:
    for item in items:
        taken.append(item)
        yield item


def test_nothing_happens_before_the_first_result_is_wanted(client: Client, script: Script) -> None:
    """A stream without a reader reads no input and makes no call."""
    taken: list[str] = []
    client.embed_stream(_noted(["a"], taken)).close()
    stream = client.embed_stream(_noted(["a"], taken))
    del stream
    assert taken == []
    client.health()
    assert len(script.calls) == 1


@pytest.mark.parametrize(("window", "batch"), [(1, 64), (2, 64), (3, 2), (8, 4), (50, 7)])
def test_the_window_of_the_server_is_never_exceeded(
    client: Client, script: Script, window: int, batch: int
) -> None:
    """The client reads no input before the server has room for it."""
    script.max_in_flight_inputs, script.max_batch_inputs = window, batch
    ahead: list[int] = []

    def inputs() -> Iterator[str]:
        for number in range(200):
            ahead.append(number + 1 - script.answered_count)
            yield str(number)

    results = list(client.embed_stream(inputs()))
    assert len(results) == 200
    assert max(ahead) <= window
    sizes = [len(message.batch.inputs) for message in script.messages]
    assert max(sizes) <= min(batch, max(1, window // 2))
    assert sum(sizes) == 200


def test_the_window_holds_while_the_server_is_silent(client: Client, script: Script) -> None:
    """Without a response, the client reads exactly the window."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 4
    script.hold_answers = threading.Event()
    taken: list[str] = []
    first: list[StreamResult] = []

    def release() -> None:
        script.window_full.wait()
        assert script.hold_answers is not None
        counts.append(len(taken))
        script.hold_answers.set()

    counts: list[int] = []
    releasing = threading.Thread(target=release)
    releasing.start()
    with client.embed_stream(_noted(map(str, itertools.count()), taken)) as stream:
        first.append(next(stream))
    releasing.join()
    assert counts == [8]
    assert first[0].id == "0"


def test_an_endless_input_is_taken_as_results_are(client: Client, script: Script) -> None:
    """Of endless inputs, the client reads only the window beyond the results."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 4
    taken: list[str] = []
    with client.embed_stream(_noted(map(str, itertools.count()), taken)) as stream:
        for number, result in enumerate(itertools.islice(stream, 500)):
            assert result.id == str(number)
            # The results of one message may have arrived already, beside the window.
            assert len(taken) <= number + 1 + 8 + 8
    assert script.stream_ended.wait(5)


def test_leaving_early_ends_the_call_and_its_threads(client: Client, script: Script) -> None:
    """After `close`, the server's handler has ended and no thread is left."""
    before = set(threading.enumerate())
    stream = client.embed_stream(map(str, itertools.count()))
    next(stream)
    during = set(threading.enumerate()) - before
    stream.close()
    assert script.stream_ended.wait(5)
    for thread in during:
        thread.join(5)
    assert not [thread for thread in during if thread.is_alive()]
    assert list(stream) == []
    stream.close()


def test_a_full_window_does_not_hold_threads_back(target: str, script: Script) -> None:
    """Closing wakes the thread that waits for room, even before any response."""
    script.hold_answers = threading.Event()
    before = set(threading.enumerate())
    with Client(target) as client, client.embed_stream(map(str, itertools.count())) as stream:
        stream.ready()
        script.window_full.wait()
        during = set(threading.enumerate()) - before
    script.hold_answers.set()
    of_client = [thread for thread in during if not thread.name.startswith("asyncio")]
    assert "embedgrpc-stream" in [thread.name for thread in of_client]
    for thread in of_client:
        thread.join(5)
        assert not thread.is_alive()


def test_dropping_a_stream_ends_the_call(client: Client, script: Script) -> None:
    """A garbage-collected stream is cancelled like a closed one."""
    for _ in client.embed_stream(map(str, itertools.count())):
        break
    client.health()  # runs the loop of an asynchronous client
    assert script.stream_ended.wait(5)


def test_an_exception_of_the_inputs_reaches_the_caller(client: Client) -> None:
    """The exception of the inputs comes after the results of earlier inputs."""

    def inputs() -> Iterator[str]:
        yield from "abc"
        raise LookupError("lost")

    stream = client.embed_stream(inputs())
    assert [next(stream).id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(LookupError, match="lost"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("\ud800 secret", ValueError, r"inputs\[1\] has a lone surrogate"),
        (("id", "\ud800 secret"), ValueError, r"inputs\[1\] has a lone surrogate"),
        (("id", None), TypeError, r"inputs\[1\] is not a str"),
        (("id", "text", 3), TypeError, r"inputs\[1\] is neither"),
        (None, TypeError, r"inputs\[1\] is neither"),
    ],
)
def test_an_input_that_cannot_be_sent_ends_the_stream(
    client: Client, item: Any, error: type[Exception], message: str
) -> None:
    """The error has the position and not the text."""
    stream = client.embed_stream(["a", item, "b"])
    assert next(stream).id == "0"
    with pytest.raises(error, match=message) as caught:
        next(stream)
    assert "secret" not in repr(caught.value)


def test_a_refused_stream_is_an_error(client: Client) -> None:
    """An error of the setup is raised by the first result, or by `ready`."""
    with pytest.raises(ModelNotFoundError) as caught:
        next(client.embed_stream(["a"], model="absent"))
    assert caught.value.unanswered_ids == ()
    with pytest.raises(ModelNotFoundError):
        client.embed_stream(["a"], model="absent").ready()


def test_a_broken_stream_tells_what_is_unanswered(client: Client, script: Script) -> None:
    """Every id that was read is in a result or in the error."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 2
    script.end_stream_after = 4
    taken: list[tuple[int, str]] = []
    inputs = _noted(((n * n, "t") for n in range(100)), taken)
    stream = client.embed_stream(inputs, reconnect_s=0)
    answered: list[int] = []
    with pytest.raises(ConnectionFailedError) as caught:
        answered.extend(result.id for result in stream)
    assert answered == [0, 1, 4, 9][: len(answered)]
    assert answered + list(caught.value.unanswered_ids) == [number for number, _ in taken]


def test_a_stream_that_may_not_go_on_is_not_begun_again(client: Client, script: Script) -> None:
    """With no time to reconnect, the client retries only a call that the server refused."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 2
    script.end_stream_after = 4
    script.end_stream_message = "Received RST_STREAM with error code 7"
    with pytest.raises(ConnectionFailedError):
        list(client.embed_stream(map(str, range(100)), reconnect_s=0))
    assert len(script.calls) == 1


def test_a_silent_server_is_given_up(client: Client, script: Script) -> None:
    """The wait for a response has a deadline; the stream has none."""
    script.stay_silent = True
    with pytest.raises(DeadlineExpiredError, match=r"no response for 0\.1 s"):
        next(client.embed_stream(["a"], timeout_s=0.1))
    assert script.stream_ended.wait(5)


def test_a_wait_for_inputs_is_not_the_server_s_fault(client: Client) -> None:
    """Inputs may take longer than the timeout while no response is due."""

    def inputs() -> Iterator[str]:
        yield "a"
        threading.Event().wait(3)  # a slow source, not a wait for another thread
        yield "b"

    # On a busy machine a response itself may take a tenth of a second.
    results = list(client.embed_stream(inputs(), batch_size=1, timeout_s=2))
    assert [result.id for result in results] == ["0", "1"]


def test_large_texts_travel_in_messages_of_bounded_size(client: Client, script: Script) -> None:
    """A message has at most 1 MiB of texts; a larger text is alone in its message."""
    script.max_in_flight_inputs, script.max_batch_inputs = 100, 50
    texts = ["x" * 400_000] * 5 + ["é" * MESSAGE_BYTES_MAX] + ["y"]
    assert len(list(client.embed_stream(texts))) == 7
    sizes = [len(message.batch.inputs) for message in script.messages]
    assert sizes == [2, 2, 1, 1, 1]


def test_no_inputs_give_no_results(client: Client) -> None:
    """A stream without inputs is not an error."""
    assert list(client.embed_stream([])) == []


async def test_asynchronous_inputs_are_taken(target: str) -> None:
    """Inputs may be an async iterable, and its exception is raised too."""

    async def inputs() -> AsyncIterator[str]:
        for text in "abc":
            yield text
        raise LookupError("lost")

    seen: list[str] = []
    async with AsyncClient(target) as client:
        stream = client.embed_stream(inputs())
        for _ in range(3):
            seen.append((await anext(stream)).id)  # noqa: PERF401 -- one by one on purpose
        with pytest.raises(LookupError, match="lost"):
            await anext(stream)
    assert seen == ["0", "1", "2"]


def ready_state(
    *, batch_size: int, order: ResultOrder = "input", max_bytes: int = 2**22, window: int = 4
) -> EmbedState:
    """Make the state of a stream that the server has accepted."""
    state = EmbedState(
        ["a"],
        model="",
        order=order,
        batch_size=batch_size,
        timeout_s=1.0,
        reconnect_s=60,
        request_limit=RequestLimit(max_bytes),
    )
    ready = pb.StreamEmbedReady(max_in_flight_inputs=window, max_batch_inputs=window)
    state.receive(pb.StreamEmbedResponse(ready=ready))
    return state


def test_a_message_is_begun_only_when_it_can_be_filled() -> None:
    """With room for one input, the client waits: many small messages are slow."""
    state = ready_state(batch_size=4, window=8)
    sent = [state.add("a") for _ in range(8)]
    assert [message is not None for message in sent] == [False, False, False, True] * 2
    for answered in range(3):
        assert not state.has_room()
        state.receive(_answer(str(answered)))
    assert not state.has_room()
    state.receive(_answer("3"))
    for _ in range(4):
        assert state.has_room()
        message = state.add("a")
    assert message is not None
    assert len(message.batch.inputs) == 4
    assert not state.has_room()


def test_messages_are_full_however_slowly_answers_come(client: Client, script: Script) -> None:
    """Messages are full even where results arrive one by one."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 4
    script.one_by_one = True
    assert len(list(client.embed_stream(map(str, range(101))))) == 101
    assert [len(message.batch.inputs) for message in script.messages] == [4] * 25 + [1]


def test_responses_without_a_reader_do_not_pile_up() -> None:
    """The reader reads a few responses ahead of its caller; the others stay on the wire."""
    state = ready_state(batch_size=1, window=100)
    exchange = _Exchange(state)
    taken: list[int] = []

    def answers() -> Iterator[pb.StreamEmbedResponse]:
        for number in range(100):
            taken.append(number)
            yield _answer(str(number))

    reading = threading.Thread(target=exchange.read, args=(answers(),))
    reading.start()
    try:
        while reading.is_alive() and not exchange._changed._waiters:  # type: ignore[attr-defined] # undocumented
            pass
        assert len(taken) == 3  # two that wait for the caller, and one being added
    finally:
        exchange.stop()
        reading.join()


async def test_answers_are_read_only_when_results_are_wanted(target: str, script: Script) -> None:
    """On an event loop, the client reads a response when the last one's results are used up."""
    script.max_in_flight_inputs, script.max_batch_inputs = 100, 10
    async with AsyncClient(target) as client:
        stream = client.embed_stream(map(str, range(1000)))
        for number in range(500):
            assert (await anext(stream)).id == str(number)
            assert len(stream._results) < 10
        await stream.aclose()


def _answer(position: str) -> pb.StreamEmbedResponse:
    result = pb.StreamEmbedResult(id=position, error={"code": 3})
    return pb.StreamEmbedResponse(results=pb.StreamEmbedResults(results=[result]))


def _state() -> EmbedState:
    return ready_state(batch_size=1)


@pytest.mark.parametrize(
    "response",
    [
        pb.StreamEmbedResponse(),
        pb.StreamEmbedResponse(ready=pb.StreamEmbedReady()),
        pb.StreamEmbedResponse(
            results=pb.StreamEmbedResults(results=[pb.StreamEmbedResult(id="1", error={"code": 3})])
        ),
        pb.StreamEmbedResponse(
            results=pb.StreamEmbedResults(
                results=[pb.StreamEmbedResult(id="0", error={"code": 3})] * 2
            )
        ),
    ],
)
def test_an_answer_out_of_step_is_refused(response: pb.StreamEmbedResponse) -> None:
    """A second `ready`, an unknown id or a second result ends the stream; no id is lost."""
    state = _state()
    assert state.add(("mine", "a")) is not None
    with pytest.raises(BadResponseError) as caught:
        state.receive(response)
    assert state.outcome(caught.value) is caught.value
    assert caught.value.unanswered_ids == ("mine",)


def test_an_early_end_is_an_error() -> None:
    """It is an error if the server ends a stream with OK while inputs are unanswered."""
    state = _state()
    state.add("a")
    state.end_inputs()
    outcome = state.outcome(None)
    assert isinstance(outcome, ConnectionFailedError)
    assert outcome.unanswered_ids == ("0",)


def test_an_end_before_the_inputs_are_known_is_an_error() -> None:
    """It is an error if the server ends a stream with OK before the inputs end."""
    assert isinstance(_state().outcome(None), ConnectionFailedError)


@pytest.mark.parametrize("ended_by", ["caller", "server"])
def test_an_exchange_that_was_given_up_ends_no_inputs(ended_by: str) -> None:
    """A retried stream keeps its inputs, and an early end is still an error."""
    inputs = _CountedInputs("abcdef")
    state = EmbedState(
        inputs,
        model="",
        order="input",
        batch_size=1,
        timeout_s=60,
        reconnect_s=60,
        request_limit=RequestLimit(10_000),
    )
    exchange = _Exchange(state)
    first_requests = exchange.requests()
    assert next(first_requests) == state.setup
    if ended_by == "server":
        exchange.read(iter(()))
    exchange.restart()
    requests = exchange.requests()
    next(requests)
    state.receive(
        pb.StreamEmbedResponse(
            ready=pb.StreamEmbedReady(max_in_flight_inputs=4, max_batch_inputs=4)
        )
    )
    assert next(requests).batch.inputs[0].text == "a"
    assert list(first_requests) == []
    state.receive(_answer("0"))
    exchange.read(iter(()))  # the server ends the stream with OK
    assert list(requests) == []
    assert isinstance(state.outcome(None), ConnectionFailedError)
    assert inputs.begun_count == 1


class _CountedInputs:
    """Texts that count how often they are iterated."""

    def __init__(self, texts: str) -> None:
        self._texts = texts
        self.begun_count = 0

    def __iter__(self) -> Iterator[str]:
        self.begun_count += 1
        return iter(self._texts)


def test_the_time_a_caller_takes_is_not_the_server_s() -> None:
    """The wait for a response starts when the caller waits, not at the last response."""
    state = _state()
    state.add("a")
    state._waiting_since -= 2.0
    assert state.patience_s() <= 0
    state.begin_wait()
    assert 0.5 < state.patience_s() <= 1.0
