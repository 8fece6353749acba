"""LlamaIndex, which publishes no tests of its own."""

import asyncio
import json
import pickle

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from embedgrpc.client import EmptyInputError, EncodeError, ModelNotFoundError, UnauthenticatedError
from embedgrpc.client.integrations.llama_index import (
    EmbedGrpcEmbedding,
    EmbedGrpcRerank,
    EmbedGrpcSparseEmbedding,
)
from tests.integrations.programs.conftest import SHORT

TEXTS = [f"a text about {number} things" for number in range(300)]
QUERY = "how tall is the tower?"
DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
KINDS = [EmbedGrpcEmbedding, EmbedGrpcSparseEmbedding, EmbedGrpcRerank]


def test_vectors_are_those_of_the_plain_client(target, client):
    """Of many texts and of one, with the prompts of documents and of queries, in both ways."""
    embedding = EmbedGrpcEmbedding(target=target, options={"dimensions": 8})
    documents = client.encode_document(TEXTS, dimensions=8)
    query = client.encode_query(TEXTS[0], dimensions=8)
    assert not np.allclose(documents[0], query, atol=0.01)
    for found, expected in (
        (embedding.get_text_embedding_batch(TEXTS), documents),
        (embedding.get_text_embedding(TEXTS[0]), documents[0]),
        (embedding.get_query_embedding(TEXTS[0]), query),
        (asyncio.run(embedding.aget_text_embedding_batch(TEXTS)), documents),
        (asyncio.run(embedding.aget_text_embedding(TEXTS[0])), documents[0]),
        (asyncio.run(embedding.aget_query_embedding(TEXTS[0])), query),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_client_makes_the_batches(target):
    """All texts go through one stream; smaller batches can be set."""
    assert EmbedGrpcEmbedding(target=target).embed_batch_size == 2048
    small = EmbedGrpcEmbedding(target=target, embed_batch_size=100)
    found = asyncio.run(small.aget_text_embedding_batch(TEXTS))
    large = EmbedGrpcEmbedding(target=target).get_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(found, large, atol=1e-6)


def test_sparse_vectors_are_those_of_the_plain_client(target, client):
    """As weights by vocabulary id, of many texts and of one, in both ways."""
    embedding = EmbedGrpcSparseEmbedding(target=target, model_name="splade")
    answer = client.embed(TEXTS[:100], model="splade", input_type="document")
    expected = [dict(zip(one.indices.tolist(), one.values, strict=True)) for one in answer.sparse]
    (query,) = client.embed([QUERY], model="splade", input_type="query").sparse
    for found in (
        embedding.get_text_embedding_batch(TEXTS[:100]),
        asyncio.run(embedding.aget_text_embedding_batch(TEXTS[:100])),
    ):
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    for found in (
        embedding.get_query_embedding(QUERY),
        asyncio.run(embedding.aget_query_embedding(QUERY)),
    ):
        assert list(found) == query.indices.tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == pytest.approx(expected[0], abs=1e-5)


def test_rankings_are_those_of_the_plain_client(target, client):
    """Best first, with scores; the nodes that were given stay as they are; events tell of it."""
    rerank = EmbedGrpcRerank(target=target, model="cross", top_n=2)
    expected = client.rank(QUERY, DOCUMENTS, model="cross", top_k=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in DOCUMENTS]
    events = []

    class Handler(BaseEventHandler):
        def handle(self, event, **_):
            events.append(event.class_name())

    get_dispatcher().add_event_handler(Handler())
    for ranked in (
        rerank.postprocess_nodes(nodes, query_str=QUERY),
        asyncio.run(rerank.apostprocess_nodes(nodes, QueryBundle(QUERY))),
    ):
        found = [(DOCUMENTS.index(one.text), one.score) for one in ranked]
        assert found == [(one["corpus_id"], one["score"]) for one in expected]
    assert [node.score for node in nodes] == [0.5] * 3
    assert events.count("ReRankStartEvent") == events.count("ReRankEndEvent") == 2
    assert rerank.postprocess_nodes([], query_str=QUERY) == []


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_kept_without_the_key(kind, keyed_target, key):
    """What is written has no key; a pickle holds it."""
    settings = {"target": keyed_target, "client_settings": {"timeout_s": 7}}
    made = kind(**settings, options={"truncation": "none"}, api_key=key)
    for written in (made.model_dump_json(), repr(made), str(made.model_dump())):
        assert key not in written
    again = pickle.loads(pickle.dumps(made))
    assert again.api_key.get_secret_value() == key
    assert again.model_dump() == made.model_dump()
    read = kind(**{**json.loads(made.model_dump_json(exclude={"class_name"})), "api_key": key})
    assert read.model_dump() == made.model_dump()
    if kind is not EmbedGrpcSparseEmbedding:
        assert kind.from_json(made.to_json()).model_dump() == made.model_dump()
    with pytest.raises(ValueError, match="frozen"):
        made.target = "elsewhere:1"


def test_a_copy_from_written_settings_takes_its_key_from_the_environment(
    keyed_target, key, monkeypatch
):
    """So that a pipeline that is loaded elsewhere can call the server."""
    made = EmbedGrpcEmbedding(target=keyed_target, api_key=key)
    again = EmbedGrpcEmbedding.from_dict(made.to_dict())
    monkeypatch.setenv("EMBEDGRPC_API_KEY", key)
    assert again.get_query_embedding("a") == made.get_query_embedding("a")


def test_errors_are_ours(target, keyed_target):
    """With their reasons; wrong settings are told at once."""
    embedding = EmbedGrpcEmbedding(target=target, options={"truncation": "none"})
    with pytest.raises(EncodeError) as raised:
        embedding.get_text_embedding_batch(["fine", "word " * 10_000])
    assert (raised.value.reason, list(raised.value.errors)) == ("INPUT_TOO_LONG", [1])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcEmbedding(target=keyed_target, api_key="eg_wrong").get_query_embedding("a")
    with pytest.raises(EmptyInputError):
        EmbedGrpcSparseEmbedding(target=target, model_name="splade").get_text_embedding_batch(
            ["", "a"]
        )
    rerank = EmbedGrpcRerank(target=target, model="nobody")
    nodes = [NodeWithScore(node=TextNode(text="a"))]
    with pytest.raises(ModelNotFoundError):
        rerank.postprocess_nodes(nodes, query_str="a")
    with pytest.raises(ValueError, match="query"):
        rerank.postprocess_nodes(nodes)
    for wrong in ({"target": "a"}, {"options": {"dimension": 1}}):
        with pytest.raises((TypeError, ValueError)):
            EmbedGrpcEmbedding(**wrong)
    for kind in (EmbedGrpcEmbedding, EmbedGrpcSparseEmbedding, EmbedGrpcRerank):
        with pytest.raises(TypeError, match=f"{kind.__name__} has no argument 'targt'; did you"):
            kind(targt=target)


def test_search_finds_what_the_plain_client_finds(target, cranfield):
    """In an index that a pipeline of LlamaIndex filled, alone and with the reranker after it."""
    embedding = EmbedGrpcEmbedding(target=target, model_name="minilm", options=SHORT)
    nodes = [TextNode(text=text, id_=name) for name, text in cranfield.documents.items()]
    embedded = IngestionPipeline(transformations=[embedding]).run(nodes=nodes)
    index = VectorStoreIndex(embedded, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=10)

    rerank = EmbedGrpcRerank(target=target, model="cross", top_n=10)

    def search(text):
        return [one.node_id for one in retriever.retrieve(text)]

    def search_and_rank(text):
        found = retriever.retrieve(text)
        return [one.node_id for one in rerank.postprocess_nodes(found, query_str=text)]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
    assert cranfield.ndcg(search_and_rank) == pytest.approx(cranfield.expected_reranked, abs=1e-3)
