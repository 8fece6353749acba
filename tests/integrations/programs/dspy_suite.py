"""DSPy: an embedder, alone, in another embedder, and in its retriever."""

import pickle

import dspy
import numpy as np
import pytest
from conftest import SHORT

from embedgrpc.client.errors import EncodeError, UnauthenticatedError
from embedgrpc.client.integrations.dspy import EmbedGrpcEmbedder

TEXTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]


@pytest.fixture(autouse=True)
def cache(tmp_path):
    """An own folder for what DSPy keeps."""
    dspy.configure_cache(disk_cache_dir=str(tmp_path / "cache"))


async def test_vectors_are_those_of_the_plain_client(target, client):
    """Of many texts and of one, called and awaited, with each role."""
    embedder = EmbedGrpcEmbedder(target)
    assert np.array_equal(embedder(TEXTS), client.encode(TEXTS))
    assert np.array_equal(embedder(TEXTS[0]), client.encode(TEXTS[0]))
    assert np.array_equal(await embedder.acall(TEXTS), client.encode(TEXTS))
    query = EmbedGrpcEmbedder(target, input_type="query", options={"dimensions": 8})
    assert np.array_equal(query(TEXTS), client.encode_query(TEXTS, dimensions=8))


async def test_dspy_s_cache_tells_models_apart(target, client):
    """Inside its own embedders, which keep vectors by the name of their function."""
    for arguments in ({}, {"input_type": "query"}, {"options": {"dimensions": 8}}):
        inner = EmbedGrpcEmbedder(target, **arguments)
        outer = dspy.Embedder(inner)
        for _ in range(2):
            assert np.array_equal(outer(TEXTS), inner(TEXTS)), arguments
    other = dspy.Embedder(EmbedGrpcEmbedder(target, "minilm"))
    assert np.array_equal(other(TEXTS), client.encode(TEXTS, model="minilm"))


def test_a_copy_and_a_pickle_embed(target, client):
    """With the same settings."""
    embedder = EmbedGrpcEmbedder(target, options={"dimensions": 8})
    again = pickle.loads(pickle.dumps(embedder))
    assert np.array_equal(again(TEXTS), client.encode(TEXTS, dimensions=8))


def test_errors_are_those_of_the_client(target, keyed_target, key):
    """A text that fails is named; a wrong key is refused."""
    with pytest.raises(EncodeError, match=r"texts\[1\]"):
        EmbedGrpcEmbedder(target)(["a text", " "])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcEmbedder(keyed_target)(TEXTS)
    assert len(EmbedGrpcEmbedder(keyed_target, api_key=key)(TEXTS)) == len(TEXTS)
    with pytest.raises(TypeError, match="no option 'dimension'"):
        EmbedGrpcEmbedder(target, options={"dimension": 8})


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, cranfield):
    """By DSPy's retriever, whose queries have a role of their own."""
    texts = list(cranfield.documents.values())
    document = EmbedGrpcEmbedder(target, "minilm", input_type="document", options=SHORT)
    retriever = dspy.retrievers.Embeddings(texts, document, k=10)
    retriever.embedder = EmbedGrpcEmbedder(target, "minilm", input_type="query", options=SHORT)
    names = list(cranfield.documents)

    def search(text):
        return [names[index] for index in retriever(text).indices]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
