"""Haystack: what it asks of components is that a pipeline with them can be written and read."""

import asyncio

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.embedders.types import DocumentEmbedder, TextEmbedder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from embedgrpc.client import (
    EmptyInputError,
    EncodeError,
    ModelNotFoundError,
    UnauthenticatedError,
    to_qdrant,
)
from embedgrpc.client.integrations.haystack import (
    EmbedGrpcDocumentEmbedder,
    EmbedGrpcRanker,
    EmbedGrpcSparseDocumentEmbedder,
    EmbedGrpcSparseTextEmbedder,
    EmbedGrpcTextEmbedder,
)
from tests.integrations.programs.conftest import SHORT

TEXTS = [f"a text about {number} things" for number in range(300)]
QUERY = "how tall is the tower?"
DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
KINDS = [
    EmbedGrpcTextEmbedder,
    EmbedGrpcDocumentEmbedder,
    EmbedGrpcSparseTextEmbedder,
    EmbedGrpcSparseDocumentEmbedder,
    EmbedGrpcRanker,
]


def both_ways(component, **inputs):
    """Yield what a component returns in a thread, and on an event loop."""
    component.warm_up()
    yield component.run(**inputs)
    yield asyncio.run(component.run_async(**inputs))


def test_vectors_are_those_of_the_plain_client(target, client):
    """Of documents and of queries, with their own prompts; the given documents stay as they are."""
    documents = client.encode_document(TEXTS, dimensions=8)
    query = client.encode_query(TEXTS[0], dimensions=8)
    assert not np.allclose(documents[0], query, atol=0.01)
    texts = EmbedGrpcTextEmbedder(target, model="embed", options={"dimensions": 8})
    for answer in both_ways(texts, text=TEXTS[0]):
        np.testing.assert_allclose(answer["embedding"], query, atol=1e-6)
        assert answer["meta"] == {"model": "embed"}
    many = EmbedGrpcDocumentEmbedder(target, options={"dimensions": 8})
    given = [Document(content=text) for text in TEXTS]
    for answer in both_ways(many, documents=given):
        found = [one.embedding for one in answer["documents"]]
        np.testing.assert_allclose(found, documents, atol=1e-6)
        assert [one.id for one in answer["documents"]] == [one.id for one in given]
    assert all(one.embedding is None for one in given)
    assert many.run([])["documents"] == []


def test_metadata_goes_before_the_text(target, client):
    """That which is named and there, as in Haystack's own embedders."""
    fields = {"meta_fields_to_embed": ["title", "missing"], "embedding_separator": ": "}
    many = EmbedGrpcDocumentEmbedder(target, **fields)
    (document,) = many.run([Document(content="a text", meta={"title": 7, "other": 8})])["documents"]
    np.testing.assert_allclose(document.embedding, client.encode_document("7: a text"), atol=1e-6)


def test_sparse_vectors_are_those_of_the_plain_client(target, client):
    """As Haystack has them."""
    few = TEXTS[:100]
    expected = client.embed(few, model="splade", input_type="document").sparse
    (query,) = client.embed([QUERY], model="splade", input_type="query").sparse
    texts = EmbedGrpcSparseTextEmbedder(target, model="splade")
    for answer in both_ways(texts, text=QUERY):
        assert answer["sparse_embedding"].to_dict() == to_qdrant(query)
    many = EmbedGrpcSparseDocumentEmbedder(target, model="splade")
    for answer in both_ways(many, documents=[Document(content=text) for text in few]):
        for one, other in zip(answer["documents"], expected, strict=True):
            assert one.sparse_embedding.indices == other.indices.tolist()
            assert one.sparse_embedding.values == pytest.approx(other.values, abs=1e-5)


def test_rankings_are_those_of_the_plain_client(target, client):
    """Best first, with scores; a run may have its own limit."""
    ranker = EmbedGrpcRanker(target, model="cross")
    expected = client.rank(QUERY, DOCUMENTS, model="cross")
    given = [Document(content=text) for text in DOCUMENTS]
    for top_k in (None, 2):
        for answer in both_ways(ranker, query=QUERY, documents=given, top_k=top_k):
            found = [(DOCUMENTS.index(one.content), one.score) for one in answer["documents"]]
            assert found == [(one["corpus_id"], one["score"]) for one in expected][:top_k]
    assert all(one.score is None for one in given)
    assert ranker.run(QUERY, [])["documents"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_written_and_read(kind, keyed_target):
    """With all settings; the key stays in its variable, and one that was given is refused."""
    key = Secret.from_env_var("MY_KEY")
    settings = {"model": "embed", "client_settings": {"timeout_s": 7}, "options": {"max_tokens": 8}}
    if kind is EmbedGrpcRanker:
        settings |= {"top_k": 5, "meta_fields_to_embed": ["title"]}
    made = kind(keyed_target, api_key=key, **settings)
    pipeline = Pipeline()
    pipeline.add_component("ours", made)
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=[kind.__module__])
    read = again.get_component("ours")
    assert read.to_dict() == made.to_dict()
    assert read.to_dict()["init_parameters"].items() >= settings.items()
    assert read._connection == made._connection
    with pytest.raises(ValueError, match="Cannot serialize token"):
        kind(keyed_target, api_key=Secret.from_token("eg_key")).to_dict()


def test_a_key_is_read_when_it_is_needed(keyed_target, key, monkeypatch):
    """From its own variable, or from that of all integrations."""
    component = EmbedGrpcTextEmbedder(keyed_target, api_key=Secret.from_env_var("MY_KEY"))
    with pytest.raises(ValueError, match="MY_KEY"):
        component.warm_up()
    monkeypatch.setenv("MY_KEY", key)
    expected = component.run("a")
    monkeypatch.setenv("EMBEDGRPC_API_KEY", key)
    assert EmbedGrpcTextEmbedder(keyed_target).run("a") == expected


async def test_closing_a_pipeline_closes_its_connections(target):
    """Of both kinds; another run opens them again."""
    component = EmbedGrpcTextEmbedder(target)
    pipeline = Pipeline()
    pipeline.add_component("ours", component)
    for _ in range(2):
        assert component.run("a")["embedding"]
        assert (await component.run_async("a"))["embedding"]
        pipeline.close()
        await pipeline.close_async()
        assert not component._connection._clients
        assert not component._connection._async_clients


def test_errors_are_ours(target, keyed_target):
    """With their reasons; wrong settings are told at once."""
    many = EmbedGrpcDocumentEmbedder(target)
    with pytest.raises(EncodeError) as raised:
        many.run([Document(content="fine"), Document(content=None)])
    assert (raised.value.reason, list(raised.value.errors)) == ("EMPTY_INPUT", [1])
    with pytest.raises(EmptyInputError):
        EmbedGrpcSparseDocumentEmbedder(target, model="splade").run([Document(content="")])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcTextEmbedder(keyed_target, api_key=Secret.from_token("eg_wrong")).run("a")
    with pytest.raises(ModelNotFoundError):
        EmbedGrpcRanker(target, model="nobody").run("a", [Document(content="b")])
    for wrong in ("a text", ["a text"]):
        with pytest.raises(TypeError, match="list of Documents"):
            many.run(wrong)
    for settings in ({"target": "a"}, {"options": {"dimension": 1}}):
        with pytest.raises((TypeError, ValueError)):
            EmbedGrpcDocumentEmbedder(**settings)
    for kind in (EmbedGrpcTextEmbedder, EmbedGrpcDocumentEmbedder):
        with pytest.raises(TypeError, match=f"{kind.__name__} has no argument 'targt'; did you"):
            kind(targt=target)


def test_components_have_haystacks_protocols():
    """Type checkers take them wherever Haystack asks for an embedder."""
    text: TextEmbedder = EmbedGrpcTextEmbedder()
    document: DocumentEmbedder = EmbedGrpcDocumentEmbedder()
    assert callable(text.run)
    assert callable(document.run)


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_search_finds_what_the_plain_client_finds(target, cranfield, on_a_loop):
    """By pipelines that index, search and rank, as they are written in Haystack."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    settings = {"target": target, "model": "minilm", "options": SHORT}
    indexing = Pipeline()
    indexing.add_component("embedder", EmbedGrpcDocumentEmbedder(**settings))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    searching = Pipeline()
    searching.add_component("embedder", EmbedGrpcTextEmbedder(**settings))
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=10))
    searching.add_component("ranker", EmbedGrpcRanker(target, model="cross"))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    searching.connect("retriever", "ranker")

    def run(pipeline, inputs):
        if on_a_loop:
            return asyncio.run(pipeline.run_async(inputs, include_outputs_from={"retriever"}))
        return pipeline.run(inputs, include_outputs_from={"retriever"})

    documents = [Document(content=text, id=name) for name, text in cranfield.documents.items()]
    run(indexing, {"embedder": {"documents": documents}})
    answers = {
        text: run(searching, {"embedder": {"text": text}, "ranker": {"query": text}})
        for text in cranfield.queries.values()
    }

    def ids(name):
        return lambda text: [one.id for one in answers[text][name]["documents"]]

    assert cranfield.ndcg(ids("retriever")) == pytest.approx(cranfield.expected, abs=1e-3)
    assert cranfield.ndcg(ids("ranker")) == pytest.approx(cranfield.expected_reranked, abs=1e-3)
