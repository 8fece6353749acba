"""Models with routes: queries and documents pass different modules."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.models.runner import expected
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for
from tests.server.streams import Stream

NAMES = ("router-splade", "router-mixed", "router-nested", "asym-dense")
SOURCES = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in (*NAMES, "splade-bert")]
INPUT_TYPES = {
    "none": common.INPUT_TYPE_UNSPECIFIED,
    "query": common.INPUT_TYPE_QUERY,
    "document": common.INPUT_TYPE_DOCUMENT,
}
in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server with a model of each kind."""
    async with serving(settings_for(*SOURCES, cache_dir=cache_dir)) as started:
        yield started


def options_for(role: str, **options: Any) -> pb.EmbedOptions:
    """Return options for texts of a role."""
    chosen: dict[str, Any] = {} if role == "none" else {"input_type": INPUT_TYPES[role]}
    return pb.EmbedOptions(**chosen, **options)


async def embed(service: Service, model: str, role: str, *texts: str, **options: Any) -> Any:
    """Embed texts of one role."""
    return await service.client.embed(*texts, model=model, options=options_for(role, **options))


def vector_of(embedding: pb.Embedding, size: int) -> np.ndarray:
    """Return a vector, sparse or not, as float32 [values]."""
    if not embedding.HasField("sparse"):
        return np.array(embedding.dense.values, np.float32)
    vector = np.zeros(size, np.float32)
    vector[list(embedding.sparse.indices)] = embedding.sparse.values
    return vector


def wanted_of(reference: dict[str, Any], role: str) -> np.ndarray:
    """Return the vectors of the reference, float32 [texts, values]."""
    asked, size = reference["outputs"][role], reference["settings"]["dimension"]
    if "vectors" in asked:
        return np.array(asked["vectors"], np.float32)
    rows = np.zeros((len(asked["weights"]), size), np.float32)
    for row, weights in zip(rows, asked["weights"], strict=True):
        for index, value in weights.items():
            row[int(index)] = value
    return rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", INPUT_TYPES)
@in_module
async def test_vectors_of_the_reference(service: Service, name: str, role: str) -> None:
    """Texts of each role, and of none, have the vectors of the reference: alone and in a batch."""
    reference = expected(name)
    asked, size = reference["outputs"][role], reference["settings"]["dimension"]
    texts = reference["texts"]
    if "error" in asked:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(service, name, role, *texts)
        assert "set input_type to QUERY or DOCUMENT" in (caught.value.details() or "")
        return
    answer = await embed(service, name, role, *texts)
    assert [one.token_count for one in answer.embeddings] == asked["token_counts"]
    wanted = wanted_of(reference, role)
    for text, one, vector in zip(texts, answer.embeddings, wanted, strict=True):
        found = vector_of(one, size)
        np.testing.assert_allclose(found, vector, rtol=0, atol=reference["tolerance"])
        alone = await embed(service, name, role, text)
        np.testing.assert_allclose(vector_of(alone.embeddings[0], size), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@in_module
async def test_mixed_calls(service: Service, name: str) -> None:
    """Calls at the same time for both roles, unary and in streams, give what each gives alone."""
    reference = expected(name)
    texts, size = reference["texts"], reference["settings"]["dimension"]

    async def stream(role: str) -> dict[int, np.ndarray]:
        opened = await Stream.open(service.client, model=name, options=options_for(role))
        await opened.send(*((str(index), text) for index, text in enumerate(texts)))
        return {int(one.id): vector_of(one.embedding, size) for one in await opened.end()}

    async def call(role: str, index: int) -> tuple[str, int, np.ndarray]:
        answer = await embed(service, name, role, texts[index])
        return role, index, vector_of(answer.embeddings[0], size)

    roles = ("query", "document")
    calls = [call(role, index) for index in range(len(texts)) for role in roles]
    found, queries, documents = await asyncio.gather(
        asyncio.gather(*calls), stream("query"), stream("document")
    )
    wanted = {role: wanted_of(reference, role) for role in roles}
    for role, index, vector in found:
        np.testing.assert_allclose(vector, wanted[role][index], rtol=0, atol=1e-5)
    for role, streamed in (("query", queries), ("document", documents)):
        for index, vector in streamed.items():
            np.testing.assert_allclose(vector, wanted[role][index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@in_module
async def test_scores_of_the_reference(service: Service, name: str) -> None:
    """Rerank sends the query by its route and the documents by theirs."""
    reference = expected(name)
    texts = reference["texts"]
    for query, scores in zip(texts, reference["scores"], strict=False):
        request = rerank.RerankRequest(model=name, query=query, documents=texts)
        answer = await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
        found = {one.index: one.score for one in answer.results}
        np.testing.assert_allclose(
            [found[index] for index in range(len(texts))], scores, rtol=1e-5, atol=1e-4
        )
        assert [one.score for one in answer.results] == sorted(found.values(), reverse=True)


@in_module
async def test_rerank_blames_the_text(service: Service) -> None:
    """Errors name the query or the document; with partial results the others have scores."""
    request = rerank.RerankRequest(
        model="router-mixed",
        query="cat",
        documents=["cat", "", "the sea"],
        options=rerank.RerankOptions(truncation=common.TRUNCATION_NONE),
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
    assert "documents[1]" in (caught.value.details() or "")
    request.query = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
    assert (caught.value.details() or "").startswith("query ")


@in_module
async def test_description(service: Service) -> None:
    """The limits are the largest of any route, and that of queries is the query route's."""
    for name in NAMES:
        reference = expected(name)["settings"]
        request = models.GetModelRequest(model=name)
        model = (await service.client.models.GetModel(request, timeout=PATIENCE_S)).model
        assert model.rerank_method == models.RERANK_METHOD_SIMILARITY
        assert models.MODEL_TASK_RERANK in model.tasks
        if name == "router-splade":
            assert model.dimensions == 0
            assert list(model.representations) == [pb.REPRESENTATION_SPARSE]
            assert model.max_tokens == reference["max_seq_length"]
            assert model.max_query_tokens == reference["query_tokens"]
            assert model.similarity == models.MODEL_SIMILARITY_DOT
            assert dict(model.prompts) == {"query": "find: ", "document": ""}
        else:
            assert model.dimensions == reference["dimension"]
            assert model.normalized


@in_module
async def test_limits_of_a_route(service: Service) -> None:
    """A text that is too long for one route may fit the other."""
    text = "the cat " * 15
    await embed(service, "router-splade", "document", text, truncation=common.TRUNCATION_NONE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(service, "router-splade", "query", text, truncation=common.TRUNCATION_NONE)
    assert "the limit is 24" in (caught.value.details() or "")


@in_module
async def test_tokens_of_a_route(service: Service) -> None:
    """Counting tokens follows the role too: a look-up adds no special tokens."""
    reference = expected("router-splade")
    limits = {"query": 24, "document": 80}
    for role, limit in limits.items():
        options = tokenizer.TokenizeOptions(input_type=INPUT_TYPES[role])
        request = tokenizer.CountTokensRequest(
            model="router-splade", texts=reference["texts"], options=options
        )
        answer = await service.client.tokenizer.CountTokens(request, timeout=PATIENCE_S)
        assert answer.max_tokens == limit
        cut = [min(count, limit) for count in answer.token_counts]
        assert cut == reference["outputs"][role]["token_counts"]
    request = tokenizer.CountTokensRequest(model="router-mixed", texts=["cat"])
    with pytest.raises(grpc.aio.AioRpcError, match="set input_type to QUERY or DOCUMENT"):
        await service.client.tokenizer.CountTokens(request, timeout=PATIENCE_S)


@in_module
async def test_a_prompt_chooses_no_route(service: Service) -> None:
    """As in the reference, the name of a prompt changes the text alone."""
    name, size = "router-splade", 1250
    asked = pb.EmbedOptions(prompt_name="query")
    answer = await service.client.embed("the cat", model=name, options=asked)
    prompted = await embed(service, name, "document", "find: the cat")
    np.testing.assert_allclose(
        vector_of(answer.embeddings[0], size),
        vector_of(prompted.embeddings[0], size),
        rtol=0,
        atol=1e-6,
    )


@in_module
async def test_heaviest_terms(service: Service) -> None:
    """`max_sparse_terms` works on either route."""
    for role in ("query", "document"):
        answer = await embed(service, "router-splade", role, "the cat sat", max_sparse_terms=2)
        assert len(answer.embeddings[0].sparse.indices) == 2


@in_module
async def test_sparse_vectors_alone_rank(service: Service) -> None:
    """A model without routes that has sparse vectors alone ranks by their dot product."""
    texts, size = expected("splade-bert")["texts"][:8], 1250
    answer = await service.client.embed(*texts, model="splade-bert")
    rows = np.stack([vector_of(one, size) for one in answer.embeddings])
    request = rerank.RerankRequest(model="splade-bert", query=texts[0], documents=texts)
    ranked = await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
    found = {one.index: one.score for one in ranked.results}
    np.testing.assert_allclose(
        [found[index] for index in range(len(texts))], rows @ rows[0], rtol=1e-5, atol=1e-5
    )
