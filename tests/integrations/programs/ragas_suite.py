"""Ragas: embeddings, their cache, and a metric."""

import asyncio

import numpy as np
import pytest
from conftest import SHORT
from ragas.cache import DiskCacheBackend
from ragas.metrics.collections import SemanticSimilarity

from embedgrpc.client.errors import EmbedGrpcError, EncodeError, UnauthenticatedError
from embedgrpc.client.integrations.ragas import EmbedGrpcEmbedding

TEXTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]


async def test_vectors_are_those_of_the_plain_client(target, client):
    """Of many texts and of one, called and awaited, with each role."""
    embedding = EmbedGrpcEmbedding(target)
    expected = client.encode(TEXTS).tolist()
    assert embedding.embed_texts(TEXTS) == expected
    assert embedding.embed_text(TEXTS[0]) == expected[0]
    assert await embedding.aembed_texts(TEXTS) == expected
    assert await embedding.aembed_text(TEXTS[0]) == expected[0]
    query = EmbedGrpcEmbedding(target, input_type="query", options={"dimensions": 8})
    assert query.embed_texts(TEXTS) == client.encode_query(TEXTS, dimensions=8).tolist()


def test_it_works_in_one_event_loop_after_another(target, client):
    """As Ragas runs its metrics."""
    embedding = EmbedGrpcEmbedding(target)
    for _ in range(2):
        found = asyncio.run(embedding.aembed_texts(TEXTS))
        assert found == client.encode(TEXTS).tolist()


async def test_models_may_share_a_cache(target, client, tmp_path):
    """Vectors of one model are never those of another, nor those of other options."""
    cache = DiskCacheBackend(str(tmp_path))
    for model, options in (("embed", {}), ("minilm", {}), ("embed", {"dimensions": 8})):
        embedding = EmbedGrpcEmbedding(target, model, options=options, cache=cache)
        # A vector differs in its last bits when other texts are in its batch.
        expected = pytest.approx(client.encode(TEXTS, model=model, **options), abs=1e-6)
        first = embedding.embed_texts(TEXTS[:2])
        again = embedding.embed_texts([*TEXTS, TEXTS[0]])
        assert np.array(again[:3]) == expected
        assert [*again[:2], again[3]] == [*first, first[0]]
        assert await embedding.aembed_texts(TEXTS) == again[:3]
    assert len(cache.cache) == 9


def test_errors_are_those_of_the_client(target, keyed_target, key):
    """A text that fails is named; a wrong key is refused."""
    with pytest.raises(EncodeError, match=r"texts\[1\]"):
        EmbedGrpcEmbedding(target).embed_texts(["a text", " "])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcEmbedding(keyed_target).embed_text("a text")
    assert EmbedGrpcEmbedding(keyed_target, api_key=key).embed_text("a text")
    with pytest.raises(EmbedGrpcError):
        EmbedGrpcEmbedding("127.0.0.1:1", client_settings={"timeout_s": 1}).embed_text("a text")


async def test_a_metric_has_the_cosine_of_the_plain_client(target, client):
    """Ragas compares an answer with a reference by their vectors."""
    metric = SemanticSimilarity(embeddings=EmbedGrpcEmbedding(target, "minilm"))
    found = await metric.ascore(reference=TEXTS[1], response=TEXTS[2])
    left, right = client.encode(TEXTS[1:], model="minilm")
    assert found.value == pytest.approx(float(left @ right), abs=1e-5)


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, cranfield):
    """Its nDCG@10 is equal."""
    documents, queries = (
        EmbedGrpcEmbedding(target, "minilm", input_type=role, options=SHORT)
        for role in ("document", "query")
    )
    corpus = np.asarray(documents.embed_texts(list(cranfield.documents.values())))
    names = np.array(list(cranfield.documents))

    def search(text):
        return names[np.argsort(-(corpus @ queries.embed_text(text)), kind="stable")].tolist()

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
