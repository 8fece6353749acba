"""Late chunking, beside the computation of its reference."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.client import AsyncClient
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.chunks import by_sentences, by_spans, by_tokens, places, rows
from tests.server.failures import failure_of
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ALL: dict[str, Any] = json.loads((FIXTURES / "token-vectors/expected.json").read_text())
EXPECTED: dict[str, Any] = _ALL["late_chunking"]
PROMPT: str = _ALL["prompt"]
TEXT: str = EXPECTED["text"]
SPANS: list[list[int]] = EXPECTED["spans"]
NAMES = sorted(EXPECTED["models"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server with models that pool by the mean, and some that do not."""
    names = (*NAMES, "bert-cls", "gemma-dense", "colbert-bert")
    served = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in names]
    async with serving(settings_for(*served, cache_dir=cache_dir)) as started:
        yield started


async def embed(
    service: Service, *texts: str, model: str, chunking: pb.Chunking, **options: Any
) -> list[pb.ChunkVectors]:
    """Return the chunks of texts."""
    response = await service.client.embed(
        *texts,
        model=model,
        options=pb.EmbedOptions(chunking=chunking, **options),
        max_response_bytes=1 << 24,
    )
    return [one.chunks for one in response.embeddings]


@pytest.mark.parametrize("name", NAMES)
async def test_vectors_of_spans_are_those_of_the_reference(service: Service, name: str) -> None:
    """With a prompt too, whose tokens are in no chunk; and places are in bytes as well."""
    answers = EXPECTED["models"][name]
    for prompt, wanted in (("", answers["spans"]), (PROMPT, answers["prompt"])):
        (found,) = await embed(
            service, TEXT, model=name, chunking=by_spans(SPANS), prompt_text=prompt
        )
        np.testing.assert_allclose(rows(found), wanted, rtol=0, atol=1e-5)
        assert places(found) == SPANS
        wire = TEXT.encode()
        assert [
            wire[start:end].decode()
            for start, end in zip(found.byte_starts, found.byte_ends, strict=True)
        ] == [TEXT[start:end] for start, end in SPANS]
        assert all(found.token_counts)


@pytest.mark.parametrize("name", NAMES)
async def test_vectors_of_windows_are_those_of_the_reference(service: Service, name: str) -> None:
    """Windows of tokens, with and without overlap, cover the text."""
    for size, overlap in EXPECTED["tokens"]:
        (found,) = await embed(service, TEXT, model=name, chunking=by_tokens(size, overlap))
        wanted = EXPECTED["models"][name][f"tokens_{size}_{overlap}"]
        np.testing.assert_allclose(rows(found), wanted, rtol=0, atol=1e-5)
        assert set(found.token_counts[:-1]) == {size}
        assert 0 < found.token_counts[-1] <= size
        assert found.character_starts[0] == 0
        assert found.character_ends[-1] == len(TEXT)


async def test_sentences_are_chunks(service: Service) -> None:
    """They have the vectors of the same spans, one by one or grouped."""
    for count in (1, 2, 5):
        (found,) = await embed(service, TEXT, model="bert-mean", chunking=by_sentences(count))
        sentences = [TEXT[start:end] for start, end in places(found)]
        assert "".join(sentences).replace(" ", "") == TEXT.replace(" ", "")
        assert len(sentences) == -(-3 // count)
        (named,) = await embed(service, TEXT, model="bert-mean", chunking=by_spans(places(found)))
        assert named == found


async def test_one_chunk_of_all_tokens_is_the_mean_of_the_text(service: Service) -> None:
    """It differs from the dense vector by the special tokens alone."""
    options = pb.EmbedOptions(chunking=by_tokens(1000), token_vectors=True, normalize=False)
    response = await service.client.embed(TEXT, model="roberta-mean", options=options)
    one = response.embeddings[0]
    vectors = np.array(one.token_vectors.vectors.values, np.float32).reshape(
        -1, one.token_vectors.vectors.dimensions
    )
    np.testing.assert_allclose(rows(one.chunks)[0], vectors[1:-1].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(one.dense.values, vectors.mean(axis=0), atol=1e-6)


async def test_options_of_vectors_apply(service: Service) -> None:
    """Dimensions, normalize and encoding are those of dense vectors."""
    (whole,) = await embed(
        service, TEXT, model="bert-mean", chunking=by_spans(SPANS), normalize=False
    )
    (short,) = await embed(
        service, TEXT, model="bert-mean", chunking=by_spans(SPANS), dimensions=8, normalize=True
    )
    kept = rows(whole)[:, :8]
    np.testing.assert_allclose(
        rows(short), kept / np.linalg.norm(kept, axis=1, keepdims=True), atol=1e-6
    )
    (small,) = await embed(
        service,
        TEXT,
        model="bert-mean",
        chunking=by_spans(SPANS),
        dimensions=8,
        normalize=True,
        encoding=pb.VECTOR_ENCODING_UBINARY,
    )
    assert small.vectors.data == np.packbits(rows(short) > 0, axis=1).tobytes()


async def test_chunks_do_not_depend_on_how_a_text_is_sent(service: Service) -> None:
    """Alone, beside others and in a stream: the same within 1e-6."""
    chunking = by_tokens(5, 2)
    texts = [TEXT, "short", TEXT[:30]]
    (alone,) = await embed(service, TEXT, model="bert-mean", chunking=chunking)
    beside = (await embed(service, *texts, model="bert-mean", chunking=chunking))[0]
    inputs = [pb.StreamEmbedInput(id=str(place), text=one) for place, one in enumerate(texts)]

    async def requests() -> AsyncIterator[pb.StreamEmbedRequest]:
        options = pb.EmbedOptions(chunking=chunking)
        yield pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup(model="bert-mean", options=options))
        yield pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs))

    streamed = {}
    async for response in service.client.embedding.StreamEmbed(requests(), timeout=PATIENCE_S):
        for result in response.results.results:
            streamed[result.id] = result.embedding.chunks
    assert len(streamed) == len(texts)
    for other in (beside, streamed["0"]):
        assert places(other) == places(alone)
        np.testing.assert_allclose(rows(other), rows(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "options", "reason", "field", "says"),
    [
        ("bert-cls", {}, "UNSUPPORTED", "options.chunking", "pools by cls"),
        ("gemma-dense", {}, "UNSUPPORTED", "options.chunking", "Dense"),
        (
            "colbert-bert",
            {"input_type": common.INPUT_TYPE_DOCUMENT},
            "UNSUPPORTED",
            "options.chunking",
            "MULTI_VECTOR",
        ),
        (
            "bert-mean",
            {"truncation": common.TRUNCATION_END},
            "INVALID_REQUEST",
            "options.truncation",
            "NONE",
        ),
        (
            "bert-mean",
            {"chunking": pb.Chunking()},
            "INVALID_REQUEST",
            "options.chunking",
            "tokens, sentences or spans",
        ),
        (
            "bert-mean",
            {"chunking": by_tokens(0)},
            "INVALID_REQUEST",
            "options.chunking.tokens.size",
            "at least 1",
        ),
        (
            "bert-mean",
            {"chunking": by_tokens(3, 3)},
            "INVALID_REQUEST",
            "options.chunking.tokens.overlap",
            "less than the size, 3",
        ),
        (
            "bert-mean",
            {"chunking": by_sentences(-1)},
            "INVALID_REQUEST",
            "options.chunking.sentences.count",
            "-1",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([[0, 1]], [[0, 1]])},
            "INVALID_REQUEST",
            "options.chunking.spans.texts",
            "2 entries for 1 texts",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([[0, 6], [5, 5]])},
            "INVALID_REQUEST",
            "options.chunking.spans.texts[0].character_starts[1]",
            "from 5 to 5",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([[0, 6], [7, 1000]])},
            "INVALID_REQUEST",
            "options.chunking.spans.texts[0].character_ends[1]",
            f"1000, but the text has {len(TEXT)}",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([[0, 6], [6, 7]])},
            "INVALID_REQUEST",
            "options.chunking.spans.texts[0].character_starts[1]",
            "without any token",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([[0, 6]] * 4097)},
            "INVALID_REQUEST",
            "options.chunking.spans",
            "4097 chunks of texts[0]; the limit is 4096",
        ),
        (
            "bert-mean",
            {"chunking": by_spans([], [[0, 6]] * 8193)},
            "INVALID_REQUEST",
            "options.chunking.spans.texts",
            "8193 spans or entries; the limit is 8192",
        ),
        (
            "bert-mean",
            {"chunking": pb.Chunking(spans=pb.ChunkBySpans(texts=[pb.TextSpans()] * 8193))},
            "INVALID_REQUEST",
            "options.chunking.spans.texts",
            "8193 spans or entries",
        ),
        (
            "bert-mean",
            {
                "chunking": pb.Chunking(
                    spans=pb.ChunkBySpans(
                        texts=[pb.TextSpans(character_starts=[1, 2], character_ends=[3])]
                    )
                )
            },
            "INVALID_REQUEST",
            "options.chunking.spans.texts[0].character_ends",
            "2 character_starts and 1",
        ),
    ],
)
async def test_bad_requests_are_refused(
    service: Service, *, model: str, options: dict[str, Any], reason: str, field: str, says: str
) -> None:
    """The error names the field, the size and the limit, and never the text."""
    asked = {"chunking": by_tokens(8)} | options
    failure = await failure_of(embed(service, TEXT, model=model, **asked))
    assert failure.reason == reason
    assert failure.fields == (field,)
    assert says in failure.details
    assert "Berlin" not in failure.details


async def test_texts_that_are_too_long_are_refused(service: Service) -> None:
    """They are not truncated, though the model's default is to do so; one alone may fail."""
    long = "word " * 500
    failure = await failure_of(embed(service, long, model="bert-mean", chunking=by_tokens(8)))
    assert (failure.reason, failure.label) == ("INPUT_TOO_LONG", "TOKENS")
    response = await service.client.embed(
        long,
        TEXT,
        model="bert-mean",
        allow_partial=True,
        options=pb.EmbedOptions(chunking=by_tokens(8)),
    )
    assert response.embeddings[0].error.reason == common.ERROR_REASON_INPUT_TOO_LONG
    assert response.embeddings[1].chunks.vectors.row_count == 5


async def test_the_client_returns_chunks_and_tokens(service: Service) -> None:
    """Options of the client ask for them, in calls and streams; places fit the text."""
    wanted = EXPECTED["models"]["bert-mean"]
    async with AsyncClient(service.address) as client:
        spans = [[(start, end) for start, end in SPANS], [(0, 5)]]
        answer = await client.embed([TEXT, "short"], model="bert-mean", chunk_spans=spans)
        np.testing.assert_allclose(answer.chunks[0].vectors, wanted["spans"], rtol=0, atol=1e-5)
        assert answer.chunks[0].character_ends.tolist() == [end for _, end in SPANS]
        assert (len(answer.chunks[1]), answer.token_vectors) == (1, ())
        partial = await client.embed(
            [" ", TEXT], model="bert-mean", chunk_spans=[[(0, 1)], spans[0]], allow_partial=True
        )
        assert partial.indices.tolist() == [1]
        np.testing.assert_array_equal(partial.embedded.chunks[0].vectors, answer.chunks[0].vectors)
        stream = client.embed_stream(
            [TEXT], model="bert-mean", chunk_tokens=8, chunk_overlap=3, token_vectors=True
        )
        (result,) = [one async for one in stream]
        assert result.chunks is not None
        assert result.token_vectors is not None
        np.testing.assert_allclose(result.chunks.vectors, wanted["tokens_8_3"], rtol=0, atol=1e-5)
        tokens = result.token_vectors
        assert tokens.vectors.shape == (len(tokens), 32)
        assert TEXT[tokens.character_starts[1] : tokens.character_ends[1]] in TEXT
        sentences = await client.embed([TEXT], model="bert-mean", chunk_sentences=3)
        assert len(sentences.chunks[0]) == 1
        model = await client.get_model("bert-mean")
        assert model.token_dimensions == 32
        with pytest.raises(ValueError, match="only one of"):
            await client.embed([TEXT], chunk_tokens=3, chunk_sentences=1)
        with pytest.raises(ValueError, match="needs chunk_tokens"):
            await client.embed([TEXT], chunk_overlap=3)


async def test_answers_that_are_too_large_are_refused(cache_dir: Path) -> None:
    """The vectors of all chunks count."""
    model = ModelSettings(id="m", source=str(FIXTURES / "bert-mean"))
    async with serving(settings_for(model, cache_dir=cache_dir, max_response_bytes=4096)) as small:
        spans = by_spans([[0, 6]] * 100)
        failure = await failure_of(embed(small, TEXT, model="m", chunking=spans))
        assert failure.label == "RESPONSE_TOO_LARGE"
        assert int(failure.metadata["responseBytes"]) > 100 * 32 * 4
        assert await embed(small, TEXT, model="m", chunking=by_sentences(2))
