"""Models with one vector per token: ColBERT, PyLate and MultiVectorEncoder."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.models.runner import expected
from tests.server.failures import failure_of
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for
from tests.server.streams import Stream

NAMES = ("colbert-bert", "colbert-pylate", "multi-vector-roberta")
LATE = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in NAMES]
INPUT_TYPES = {"query": common.INPUT_TYPE_QUERY, "document": common.INPUT_TYPE_DOCUMENT}
in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server with a model of each layout."""
    async with serving(settings_for(*LATE, cache_dir=cache_dir)) as started:
        yield started


def rows_of(vector: pb.MultiVector) -> NDArray[np.float32]:
    """Return the vectors, float32 [tokens, dimensions]."""
    return np.array(vector.values, np.float32).reshape(vector.row_count, vector.dimensions)


async def embed(service: Service, model: str, role: str, *texts: str, **options: Any) -> Any:
    """Embed texts of one role."""
    asked = pb.EmbedOptions(input_type=INPUT_TYPES[role], **options)
    return await service.client.embed(*texts, model=model, options=asked)


async def rank(service: Service, model: str, query: str, documents: list[str]) -> dict[int, float]:
    """Return the score of each document."""
    request = rerank.RerankRequest(model=model, query=query, documents=documents)
    answer = await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
    return {one.index: one.score for one in answer.results}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", INPUT_TYPES)
@in_module
async def test_vectors_of_the_reference(service: Service, name: str, role: str) -> None:
    """Queries and documents have the vectors of the reference, in a batch and alone."""
    reference = expected(name)
    asked = reference["outputs"][role]
    answer = await embed(service, name, role, *asked["texts"])
    assert [one.token_count for one in answer.embeddings] == [len(i) for i in asked["token_ids"]]
    for text, one, vectors in zip(asked["texts"], answer.embeddings, asked["vectors"], strict=True):
        assert not one.HasField("dense")
        found = rows_of(one.multi_vector)
        np.testing.assert_allclose(found, vectors, rtol=0, atol=reference["tolerance"])
        alone = await embed(service, name, role, text)
        np.testing.assert_allclose(
            rows_of(alone.embeddings[0].multi_vector), found, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
@in_module
async def test_stream(service: Service, name: str) -> None:
    """A stream gives the vectors of a call."""
    texts = expected(name)["outputs"]["query"]["texts"]
    answer = await embed(service, name, "query", *texts)
    options = pb.EmbedOptions(input_type=common.INPUT_TYPE_QUERY)
    stream = await Stream.open(service.client, model=name, options=options)
    await stream.send(*((str(index), text) for index, text in enumerate(texts)))
    found = {one.id: one.embedding.multi_vector for one in await stream.end()}
    for index, one in enumerate(answer.embeddings):
        np.testing.assert_allclose(
            rows_of(found[str(index)]), rows_of(one.multi_vector), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
@in_module
async def test_scores_of_the_reference(service: Service, name: str) -> None:
    """Documents have the reference's scores for each query."""
    reference = expected(name)
    documents = reference["outputs"]["document"]["texts"]
    rows = zip(reference["outputs"]["query"]["texts"], reference["scores"], strict=True)
    for query, scores in rows:
        found = await rank(service, name, query, documents)
        np.testing.assert_allclose(
            [found[index] for index in range(len(documents))],
            scores,
            rtol=reference["tolerance"],
            atol=reference["tolerance"],
        )


@pytest.mark.parametrize("name", NAMES)
@in_module
async def test_description(service: Service, name: str) -> None:
    """The model says that it has multi-vectors alone, and ranks with them."""
    request = models.GetModelRequest(model=name)
    model = (await service.client.models.GetModel(request, timeout=PATIENCE_S)).model
    settings = expected(name)["settings"]
    assert list(model.representations) == [pb.REPRESENTATION_MULTI_VECTOR]
    assert model.rerank_method == models.RERANK_METHOD_LATE_INTERACTION
    assert model.dimensions == 0
    assert model.max_tokens == settings["document_length"]
    expansion = settings["query_expansion"]["length"]
    assert model.max_query_tokens == (settings["query_length"] or expansion)
    assert set(model.prompts) == {"query", "document"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "options.input_type"),
        ({"input_type": common.INPUT_TYPE_CLUSTERING}, "options.input_type"),
        ({"prompt_text": "[Q] "}, "options.input_type"),
        (
            {
                "input_type": common.INPUT_TYPE_QUERY,
                "representations": [pb.REPRESENTATION_DENSE],
            },
            "options.representations[0]",
        ),
        ({"input_type": common.INPUT_TYPE_QUERY, "dimensions": 8}, "options.dimensions"),
    ],
)
@in_module
async def test_refusals(service: Service, options: dict[str, Any], field: str) -> None:
    """What a text is must be said, and there is no dense vector."""
    for name in NAMES:
        asked = service.client.embed("text", model=name, options=pb.EmbedOptions(**options))
        failure = await failure_of(asked)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert failure.fields == (field,)


@in_module
async def test_the_name_of_a_prompt_says_the_role(service: Service) -> None:
    """The prompts of queries and documents stand for the input types."""
    for role in INPUT_TYPES:
        named = pb.EmbedOptions(prompt_name=role)
        answer = await service.client.embed("some text", model=NAMES[0], options=named)
        assert answer == await embed(service, NAMES[0], role, "some text")


@in_module
async def test_what_others_do_not_see_is_part_of_a_text(service: Service) -> None:
    """A query that spells the tokens it is filled up with differs from one that is filled up."""
    short, spelled = "a", "a" + " [MASK]" * 12
    answer = await embed(service, NAMES[0], "query", short, spelled)
    one, other = (rows_of(one.multi_vector) for one in answer.embeddings)
    assert one.shape == other.shape == (16, 16)
    assert np.abs(one - other).max() > 1e-3


@in_module
async def test_limits_of_each_role(service: Service) -> None:
    """A query is cut at its own length, or refused with that limit."""
    long = "word " * 60
    for role, limit in (("query", 16), ("document", 40)):
        (one,) = (await embed(service, NAMES[0], role, long)).embeddings
        assert one.truncated
        assert one.token_count == limit
        refused = embed(service, NAMES[0], role, long, truncation=common.TRUNCATION_NONE)
        failure = await failure_of(refused)
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.metadata["maxTokens"] == str(limit)


@in_module
async def test_a_shorter_limit_cuts_the_text_before_it_is_filled_up(service: Service) -> None:
    """With max_tokens, a query is cut first and then has its usual length."""
    options = {"max_tokens": 5}
    (one,) = (await embed(service, NAMES[0], "query", "many words in a row", **options)).embeddings
    assert one.truncated
    assert one.token_count == 16


async def test_answers_of_filled_up_queries_count_against_the_limit(cache_dir: Path) -> None:
    """Short queries have long answers, and are refused before they are computed."""
    settings = settings_for(LATE[0], cache_dir=cache_dir, max_response_bytes=65_536)
    async with serving(settings) as started:
        # Cut to four tokens, and filled up to 16 vectors of 64 bytes.
        failure = await failure_of(embed(started, NAMES[0], "query", *["a"] * 70, max_tokens=4))
        assert failure.label == "RESPONSE_TOO_LARGE"
        answer = await embed(started, NAMES[0], "query", *["a"] * 40, max_tokens=4)
        assert answer.ByteSize() > 40 * 16 * 64


async def test_more_documents_than_memory_allows_are_refused(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors of a ranking are bounded."""
    monkeypatch.setattr("embedgrpc.engine.tasks.similarity._VECTORS_BYTES_MAX", 16_384)
    async with serving(settings_for(LATE[0], cache_dir=cache_dir)) as started:
        assert len(await rank(started, NAMES[0], "a", ["few words"] * 3)) == 3
        failure = await failure_of(rank(started, NAMES[0], "a", ["few words"] * 200))
        assert failure.label == "TOO_MANY_VECTORS"


async def test_special_tokens_cannot_be_plain_text(tmp_path: Path, cache_dir: Path) -> None:
    """The setting that takes the names of special tokens for text is refused."""
    del tmp_path
    model = ModelSettings(id="late", source=str(FIXTURES / NAMES[0]), escape_special_tokens=True)
    with pytest.raises(Exception, match="escape_special_tokens"):
        async with serving(settings_for(model, cache_dir=cache_dir)):
            pass
