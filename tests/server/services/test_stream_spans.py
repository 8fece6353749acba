"""Spans in a stream: each input names the chunks of its own text, and fails alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.client import AsyncClient, Client
from embedgrpc.server.calls.field_count import SMALL_BYTES
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.chunks import by_sentences, by_spans, places, rows, spans_of
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for
from tests.server.streams import Stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ALL: dict[str, Any] = json.loads((FIXTURES / "token-vectors/expected.json").read_text())
EXPECTED: dict[str, Any] = _ALL["late_chunking"]
TEXT: str = EXPECTED["text"]
SPANS: list[list[int]] = EXPECTED["spans"]
TEXTS = [TEXT, "short", TEXT[:30], TEXT]
TEXT_SPANS = [SPANS, [[0, 5]], [[0, 7], [3, 30]], []]
BY_SPANS = pb.EmbedOptions(chunking=by_spans())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with a model that pools by the mean."""
    model = ModelSettings(id="bert-mean", source=str(FIXTURES / "bert-mean"))
    async with serving(settings_for(model, cache_dir=cache_dir)) as started:
        yield started


def given(text: str, spans: list[list[int]] | pb.TextSpans | None) -> pb.StreamEmbedInput:
    """Return an input of a stream."""
    message = spans_of(spans) if isinstance(spans, list) else spans
    return pb.StreamEmbedInput(id="tested", text=text, spans=message)


async def send(
    service: Service, *inputs: pb.StreamEmbedInput, options: pb.EmbedOptions = BY_SPANS
) -> list[pb.StreamEmbedResult]:
    """Return the results of inputs that are sent in one message; their ids become their places."""
    for index, one in enumerate(inputs):
        one.id = str(index)
    stream = await Stream.open(service.client, model="bert-mean", options=options)
    await stream.call.write(
        pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs)),
    )
    results = await stream.end()
    assert [one.id for one in results] == [str(index) for index in range(len(inputs))]
    return results


@pytest.mark.parametrize("encoding", [pb.VECTOR_ENCODING_FLOAT32, pb.VECTOR_ENCODING_INT8])
async def test_chunks_are_those_of_embed(service: Service, encoding: int) -> None:
    """Vectors are equal within 1e-6 and places exactly, with every option; a text may have none."""
    options: dict[str, Any] = {
        "dimensions": 16,
        "normalize": True,
        "prompt_text": "a prompt: ",
        "encoding": encoding,
    }
    response = await service.client.embed(
        *TEXTS,
        model="bert-mean",
        options=pb.EmbedOptions(chunking=by_spans(*TEXT_SPANS), **options),
    )
    inputs = [given(text, spans) for text, spans in zip(TEXTS, TEXT_SPANS, strict=True)]
    results = await send(service, *inputs, options=pb.EmbedOptions(chunking=by_spans(), **options))
    for wanted, spans, result in zip(response.embeddings, TEXT_SPANS, results, strict=True):
        found = result.embedding.chunks
        assert places(found) == places(wanted.chunks) == spans
        assert found.byte_starts == wanted.chunks.byte_starts
        assert found.token_counts == wanted.chunks.token_counts
        np.testing.assert_allclose(rows(found), rows(wanted.chunks), rtol=0, atol=1e-6)
        assert len(found.vectors.data) == len(wanted.chunks.vectors.data)


async def test_chunks_are_those_of_the_reference(service: Service) -> None:
    """As in Embed; a text's spans do not depend on the inputs beside it."""
    wanted = EXPECTED["models"]["bert-mean"]["spans"]
    first, _, last = await send(
        service, given(TEXT, SPANS), given("a", [[0, 1]]), given(TEXT, SPANS)
    )
    for result in (first, last):
        np.testing.assert_allclose(rows(result.embedding.chunks), wanted, rtol=0, atol=1e-5)


NOT_PAIRS = pb.TextSpans(character_starts=[1, 2], character_ends=[3])
CASES: dict[str, tuple[str, list[list[int]] | pb.TextSpans | None, str]] = {
    "none": (TEXT, None, "spans is missing: the setup asks for chunks by spans"),
    "not pairs": (TEXT, NOT_PAIRS, "spans has 2 character_starts and 1 character_ends"),
    "negative": (TEXT, [[0, 6], [-1, 5]], "spans has a span from -1 to 5"),
    "empty": (TEXT, [[5, 5]], "spans has a span from 5 to 5"),
    "behind the text": (
        TEXT,
        [[0, 6], [7, 1000]],
        f"spans.character_ends[1] is 1000, but the text has {len(TEXT)} characters",
    ),
    "without a token": (
        TEXT,
        [[6, 7]],
        "spans.character_starts[0] begins a span without any token",
    ),
    "too many": (TEXT, [[0, 6]] * 4097, "spans makes 4097 chunks of the text; the limit is 4096"),
}


@pytest.mark.parametrize(("text", "spans", "says"), CASES.values(), ids=CASES)
async def test_bad_spans_fail_their_input_alone(
    service: Service, text: str, spans: list[list[int]] | pb.TextSpans | None, says: str
) -> None:
    """The stream goes on, in order; the error has the field and the limit, and never the text."""
    before, bad, after = await send(
        service, given(TEXT, SPANS), given(text, spans), given(TEXT, SPANS)
    )
    assert bad.error.reason == common.ERROR_REASON_INVALID_REQUEST
    assert says in bad.error.message
    assert "Berlin" not in bad.error.message
    for good in (before, after):
        assert places(good.embedding.chunks) == SPANS


async def test_spans_need_the_setup_to_ask_for_them(service: Service) -> None:
    """Beside texts of a stream without chunks, or with others, they fail their input alone."""
    for options in (pb.EmbedOptions(), pb.EmbedOptions(chunking=by_sentences(1))):
        good, bad = await send(service, given(TEXT, None), given(TEXT, SPANS), options=options)
        assert good.HasField("embedding")
        assert bad.error.reason == common.ERROR_REASON_INVALID_REQUEST
        assert "spans needs chunking by spans in the options of the setup" in bad.error.message


async def test_a_setup_names_no_spans(service: Service) -> None:
    """The spans of texts stand beside them."""
    stream = Stream(service.client)
    await stream.set_up(model="bert-mean", options=pb.EmbedOptions(chunking=by_spans([[0, 1]])))
    failure = await stream.failure()
    assert failure.reason == "INVALID_REQUEST"
    assert failure.fields == ("setup.options.chunking.spans.texts",)
    assert "has 1 entries" in failure.details


async def test_a_message_has_room_for_8192_spans(service: Service) -> None:
    """The input that exceeds them fails, and not those that fit, in messages of any size."""
    text = TEXT + " " * (SMALL_BYTES // 4)
    many = [[0, 6]] * 4096
    results = await send(
        service,
        *(given(text, many), given(TEXT, SPANS), given(text, many), given(text, many[9:])),
    )
    counts = [len(one.embedding.chunks.token_counts) for one in results]
    assert counts == [4096, len(SPANS), 0, 4087]
    error = results[2].error
    assert error.reason == common.ERROR_REASON_INVALID_REQUEST
    assert error.message == (
        f"spans has 4096, and the inputs before it in the message {4096 + len(SPANS)}; the limit"
        " of a message is 8192"
    )
    assert error.metadata == {"spans": str(8192 + len(SPANS)), "maxSpans": "8192"}


async def test_a_large_message_with_full_spans_is_parsed(service: Service) -> None:
    """Its numbers do not count as fields, of which a large message has a limited number."""
    text = TEXT + " " * 2000
    inputs = [given(text, [[0, 6], [300, 1500]] * 16) for _ in range(256)]
    inputs[0].spans.CopyFrom(spans_of(SPANS))
    request = pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs))
    assert request.ByteSize() > SMALL_BYTES
    first, *others = await send(service, *inputs)
    assert places(first.embedding.chunks) == SPANS
    assert len(others) == 255
    assert {one.error.message[:22] for one in others} == {"spans.character_starts"}


async def test_an_answer_that_is_too_large_fails_its_input(service: Service) -> None:
    """The vectors of its chunks count."""
    stream = await Stream.open(
        service.client, model="bert-mean", options=BY_SPANS, max_response_bytes=8192
    )
    inputs = [given(TEXT, [[0, 6]] * 100), given(TEXT, SPANS)]
    inputs[1].id = "other"
    await stream.call.write(pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs)))
    large, good = await stream.end()
    assert large.error.metadata["label"] == "RESPONSE_TOO_LARGE"
    assert places(good.embedding.chunks) == SPANS


def _check(results: list[Any]) -> None:
    wanted = EXPECTED["models"]["bert-mean"]["spans"]
    assert [one.id for one in results] == ["a", "b", "c"]
    for index in (0, 2):
        chunks = results[index].chunks
        np.testing.assert_allclose(chunks.vectors, wanted, rtol=0, atol=1e-5)
        assert chunks.character_ends.tolist() == [end for _, end in SPANS]
    assert len(results[1].chunks) == 1


INPUTS: dict[str, Callable[[], Any]] = {
    "triples": lambda: [("a", TEXT, SPANS), ("b", "short", [(0, 5)]), ("c", TEXT, np.array(SPANS))],
    "dict": lambda: {"a": (TEXT, SPANS), "b": ("short", [(0, 5)]), "c": (TEXT, SPANS)},
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
async def test_the_clients_send_spans(service: Service, inputs: Callable[[], Any]) -> None:
    """Beside each text, or as values of a dict, from both clients."""
    async with AsyncClient(service.address) as client:
        stream = client.embed_stream(inputs(), model="bert-mean", with_spans=True)
        _check([one async for one in stream])

    def read() -> list[Any]:
        with Client(service.address, timeout_s=PATIENCE_S) as blocking:
            return list(blocking.embed_stream(inputs(), model="bert-mean", with_spans=True))

    _check(await asyncio.to_thread(read))
