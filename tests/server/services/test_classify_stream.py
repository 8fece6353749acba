"""StreamClassify: the scores of Classify, for a stream of any length."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from tests.models.runner import expected
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend, vector_of
from tests.server.service import (
    EMBED,
    FIXTURES,
    PATIENCE_S,
    Service,
    serving,
    settings_for,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NLI, SENTIMENT = "classify-nli", "classify-sentiment"
WINDOW, BATCH = 8, 4
INVALID = grpc.StatusCode.INVALID_ARGUMENT
Input = str | tuple[str, str]
RAW: dict[str, Any] = {
    "score_function": classify.SCORE_FUNCTION_RAW,
    "order": classify.LABEL_ORDER_MODEL,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with classifiers and an embedding model, and a small window."""
    settings = settings_for(
        EMBED,
        *(ModelSettings(id=name, source=str(FIXTURES / name)) for name in (NLI, SENTIMENT)),
        cache_dir=cache_dir,
        max_stream_batch_inputs=BATCH,
        max_stream_in_flight_inputs=WINDOW,
    )
    async with serving(settings) as started:
        yield started


def _setup(model: str = NLI, **values: Any) -> classify.StreamClassifyRequest:
    values["options"] = classify.ClassifyOptions(**values.pop("options", {}))
    return classify.StreamClassifyRequest(setup=classify.StreamClassifySetup(model=model, **values))


def _batch(*inputs: tuple[str, Input]) -> classify.StreamClassifyRequest:
    made = [
        classify.StreamClassifyInput(id=identifier, text=one)
        if isinstance(one, str)
        else classify.StreamClassifyInput(
            id=identifier, pair=classify.TextPair(first=one[0], second=one[1])
        )
        for identifier, one in inputs
    ]
    return classify.StreamClassifyRequest(batch=classify.StreamClassifyBatch(inputs=made))


def _batches(inputs: Sequence[Input]) -> list[classify.StreamClassifyRequest]:
    named = [(str(index), one) for index, one in enumerate(inputs)]
    return [_batch(*named[start : start + BATCH]) for start in range(0, len(named), BATCH)]


async def _run(
    service: Service, *messages: classify.StreamClassifyRequest
) -> list[classify.StreamClassifyResponse]:
    stream = service.client.classify.StreamClassify(iter(messages), timeout=PATIENCE_S)
    return [response async for response in stream]


async def _results(
    service: Service, *messages: classify.StreamClassifyRequest
) -> list[classify.StreamClassifyResult]:
    responses = await _run(service, *messages)
    assert responses[0].WhichOneof("step") == "ready"
    return [one for response in responses[1:] for one in response.results.results]


def _scores(result: classify.StreamClassifyResult) -> list[float]:
    return [one.score for one in result.classification.labels]


@pytest.mark.parametrize("name", [NLI, SENTIMENT])
async def test_results_are_those_of_classify(service: Service, name: str) -> None:
    """In the order of the inputs, with the same scores, and equal to the reference's."""
    reference = expected(name)
    for form, wanted in reference["outputs"]["logits"].items():
        inputs = [one if isinstance(one, str) else tuple(one) for one in reference[form]]
        responses = await _run(service, _setup(name, options=RAW), *_batches(inputs))
        ready = responses[0].ready
        assert (ready.model, ready.max_in_flight_inputs, ready.max_batch_inputs) == (
            *(name, WINDOW, BATCH),
        )
        results = [one for response in responses[1:] for one in response.results.results]
        assert [one.id for one in results] == [str(index) for index in range(len(inputs))]
        for result, scores in zip(results, wanted, strict=True):
            assert _scores(result) == pytest.approx(scores, abs=reference["tolerance"])
        counts = [one.classification.token_count for one in results]
        assert counts == [len(ids) for ids in reference["token_ids"][form]]
        usages = [response.results.usage for response in responses[1:]]
        assert sum(one.input_tokens for one in usages) == sum(counts)
        cut = sum(one.classification.truncated for one in results)
        assert sum(one.truncated_inputs for one in usages) == cut
        form_of: dict[str, Any] = {
            form: inputs
            if form == "texts"
            else [classify.TextPair(first=one[0], second=one[1]) for one in inputs]
        }
        unary = await service.client.classify.Classify(
            classify.ClassifyRequest(
                model=name, options=classify.ClassifyOptions(**RAW), **form_of
            ),
            timeout=PATIENCE_S,
        )
        assert ready.fingerprint == unary.fingerprint
        for result, one in zip(results, unary.classifications, strict=True):
            scores = [each.score for each in one.labels]
            assert _scores(result) == pytest.approx(scores, abs=1e-6 * max(map(abs, scores)))


async def test_texts_and_pairs_may_share_a_message(service: Service) -> None:
    """Each has its own form, and the order stays that of the inputs."""
    inputs: list[Input] = ["the cat", ("the cat", "the sea"), "the sea", ("a", "b")]
    mixed = await _results(service, _setup(options=RAW), *_batches(inputs))
    assert [one.id for one in mixed] == ["0", "1", "2", "3"]
    for index, one in enumerate(inputs):
        (alone,) = await _results(service, _setup(options=RAW), _batch(("x", one)))
        assert _scores(mixed[index]) == pytest.approx(_scores(alone), abs=1e-6)


async def test_labels_are_those_that_were_asked_for(service: Service) -> None:
    """The best few, best first; or all in the model's order."""
    (best,) = await _results(service, _setup(options={"top_k": 2}), _batch(("a", ("the", "cat"))))
    labels = best.classification.labels
    assert len(labels) == 2
    assert labels[0].score >= labels[1].score
    every: dict[str, Any] = {"order": classify.LABEL_ORDER_MODEL}
    (whole,) = await _results(service, _setup(options=every), _batch(("a", ("the", "cat"))))
    assert [one.index for one in whole.classification.labels] == [0, 1, 2]


async def test_an_input_that_fails_leaves_the_others(service: Service) -> None:
    """Empty texts, over-long ones and nothing at all have results with errors, in order."""
    long = "the cat " * 200
    results = await _results(
        service,
        _setup(options={"truncation": common.TRUNCATION_NONE}),
        _batch(("a", "the cat"), ("b", ""), ("c", ("the cat", " ")), ("d", long)),
        classify.StreamClassifyRequest(
            batch=classify.StreamClassifyBatch(inputs=[classify.StreamClassifyInput(id="e")])
        ),
        _batch(("f", ("the", "sea"))),
    )
    assert [one.id for one in results] == list("abcdef")
    reasons = [one.error.reason for one in results]
    names = ["", "EMPTY_INPUT", "EMPTY_INPUT", "INPUT_TOO_LONG", "EMPTY_INPUT", ""]
    assert [_reason(one) for one in reasons] == names
    assert "pair.second" in results[2].error.message
    assert results[3].error.message.startswith("text has")


def _reason(value: common.ErrorReason) -> str:
    """Return the name of a reason without its prefix; empty for none."""
    name = common.ErrorReason.Name(value)
    return "" if name.endswith("UNSPECIFIED") else name.removeprefix("ERROR_REASON_")


async def test_pairs_that_have_no_room_fail_alone(service: Service) -> None:
    """A limit that leaves room for a text and none for a pair fails the pairs."""
    # [CLS] and [SEP] around a text, and one more behind the second text of a pair.
    results = await _results(
        service,
        _setup(options={"max_tokens": 3}),
        _batch(("a", "the cat"), ("b", ("the", "cat")), ("c", "the")),
    )
    assert [one.WhichOneof("outcome") for one in results] == [
        "classification",
        "error",
        "classification",
    ]
    assert "setup.options.max_tokens" in results[1].error.message


@pytest.mark.parametrize(
    ("messages", "code", "field"),
    [
        ([_batch(("a", "a"))], INVALID, "step"),
        ([classify.StreamClassifyRequest()], INVALID, "step"),
        ([_setup(), _setup()], INVALID, "step"),
        ([_setup(), _batch()], INVALID, "batch.inputs"),
        ([_setup(), _batch(*((str(one), "a") for one in range(BATCH + 1)))], INVALID,
         "batch.inputs"),
        ([_setup(), _batch(("a", "a"), ("a", "b"))], INVALID, "batch.inputs[1].id"),
        ([_setup(), _batch(("i" * 257, "a"))], INVALID, "batch.inputs[0].id"),
        ([_setup("nobody")], grpc.StatusCode.NOT_FOUND, "setup.model"),
        ([_setup("embed")], grpc.StatusCode.FAILED_PRECONDITION, "setup.model"),
        ([_setup(order=77)], INVALID, "setup.order"),
        ([_setup(options={"top_k": -1})], INVALID, "setup.options.top_k"),
        ([_setup(options={"max_tokens": 2})], INVALID, "setup.options.max_tokens"),
        ([_setup(options={"score_function": 77})], INVALID, "setup.options.score_function"),
        ([_setup(max_response_bytes=-1)], INVALID, "setup.max_response_bytes"),
    ],
)  # fmt: skip
async def test_a_broken_stream_is_refused(
    service: Service,
    messages: list[classify.StreamClassifyRequest],
    code: grpc.StatusCode,
    field: str,
) -> None:
    """A stream that breaks the contract ends with an error that names the field."""
    failure = await failure_of(_run(service, *messages))
    assert (failure.code, failure.fields) == (code, (field,))
    await service.check_alive()


async def test_a_result_that_is_too_large_fails_alone(service: Service) -> None:
    """A client that accepts little gets errors for the inputs that have more."""
    responses = await _results(
        service, _setup(max_response_bytes=80), _batch(("a", ("the", "cat")))
    )
    assert _reason(responses[0].error.reason) == "INVALID_REQUEST"


async def test_the_window_is_never_exceeded(cache_dir: Path) -> None:
    """While no result is sent, the server reads no more inputs than the window allows."""
    backend = HashBackend()
    backend.answer = lambda ids: vector_of(ids)[:3]
    model = ModelSettings(id=NLI, source=str(FIXTURES / NLI))
    settings = settings_for(
        model,
        cache_dir=cache_dir,
        max_stream_batch_inputs=BATCH,
        max_stream_in_flight_inputs=WINDOW,
    )
    count = 10 * WINDOW
    async with serving(settings, backend.open) as service:
        backend.hold()
        stream = service.client.classify.StreamClassify(timeout=PATIENCE_S)
        await stream.write(_setup(order=embedding.RESULT_ORDER_COMPLETION))
        assert (await stream.read()).WhichOneof("step") == "ready"
        messages = _batches([f"text {number}" for number in range(count)])

        async def write() -> None:
            for message in messages:
                await stream.write(message)
            await stream.done_writing()

        writing = asyncio.ensure_future(write())
        await until(lambda: service.bidi._in_flight == WINDOW and not service.bidi._reading)
        backend.release()
        names = []
        while (response := await stream.read()) is not grpc.aio.EOF:
            names += [one.id for one in response.results.results]
        await writing
        assert sorted(names, key=int) == [str(number) for number in range(count)]
        assert await stream.code() is grpc.StatusCode.OK


async def test_what_a_broken_stream_left_is_sent_again(service: Service) -> None:
    """The results of a stream that was cancelled and of its successor are those of one stream."""
    inputs = [f"{number} cats" for number in range(4 * WINDOW)]
    whole = await _results(service, _setup(options=RAW), *_batches(inputs))
    messages = [_setup(options=RAW), *_batches(inputs)]
    broken = service.client.classify.StreamClassify(iter(messages), timeout=PATIENCE_S)
    got: dict[str, list[float]] = {}
    async for response in broken:
        got |= {one.id: _scores(one) for one in response.results.results}
        if got:
            broken.cancel()
            break
    left = [(str(index), one) for index, one in enumerate(inputs) if str(index) not in got]
    assert left
    again = [_batch(*left[start : start + BATCH]) for start in range(0, len(left), BATCH)]
    got |= {one.id: _scores(one) for one in await _results(service, _setup(options=RAW), *again)}
    assert len(got) == len(inputs)
    for one in whole:
        assert got[one.id] == pytest.approx(_scores(one), abs=1e-6)
