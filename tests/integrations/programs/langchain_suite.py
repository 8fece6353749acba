"""LangChain: its own tests of embeddings, and ours."""

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from embedgrpc.client import EncodeError, ModelNotFoundError, UnauthenticatedError
from embedgrpc.client.integrations.langchain import EmbedGrpcEmbeddings, EmbedGrpcReranker
from tests.integrations.programs.conftest import SHORT

TEXTS = [f"a text about {number} things" for number in range(300)]
QUERY = "how tall is the tower?"
DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]


class TestUnit(EmbeddingsUnitTests):
    """LangChain's own unit tests."""

    embeddings_class = EmbedGrpcEmbeddings

    @property
    def init_from_env_params(self):
        return {"EMBEDGRPC_API_KEY": "eg_key"}, {}, {"api_key": "eg_key"}


class TestIntegration(EmbeddingsIntegrationTests):
    """LangChain's own tests of embeddings that call a service."""

    embeddings_class = EmbedGrpcEmbeddings

    @pytest.fixture
    def model(self, target):
        return EmbedGrpcEmbeddings(target=target)


def test_vectors_are_those_of_the_plain_client(target, client):
    """Of many texts and of one, with the prompts of documents and of queries, in both ways."""
    embeddings = EmbedGrpcEmbeddings(target=target, options={"dimensions": 8})
    documents = client.encode_document(TEXTS, dimensions=8)
    query = client.encode_query(TEXTS[0], dimensions=8)
    assert not np.allclose(documents[0], query, atol=0.01)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), query, atol=1e-6)
    found = asyncio.run(embeddings.aembed_documents(TEXTS))
    np.testing.assert_allclose(found, documents, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(TEXTS[0])), query, atol=1e-6)
    assert embeddings.embed_documents([]) == []


def test_rankings_are_those_of_the_plain_client(target, client):
    """Best first, with scores; the documents that were given stay as they are."""
    reranker = EmbedGrpcReranker(target=target, model="cross", top_n=2)
    expected = client.rank(QUERY, DOCUMENTS, model="cross", top_k=2)
    given = [Document(text, metadata={"place": place}) for place, text in enumerate(DOCUMENTS)]
    for ranked in (
        reranker.compress_documents(given, QUERY),
        asyncio.run(reranker.acompress_documents(given, QUERY)),
    ):
        found = [(one.metadata["place"], one.metadata["relevance_score"]) for one in ranked]
        assert found == [(one["corpus_id"], one["score"]) for one in expected]
    assert all("relevance_score" not in one.metadata for one in given)
    assert reranker.compress_documents([], QUERY) == []


@pytest.mark.parametrize("kind", [EmbedGrpcEmbeddings, EmbedGrpcReranker])
def test_settings_are_kept_without_the_key(kind, keyed_target, key, monkeypatch):
    """LangChain's own serialization and pydantic's hide the key; a pickle holds it."""
    settings = {"target": keyed_target, "model": "embed", "client_settings": {"timeout_s": 7}}
    made = kind(**settings, options={"truncation": "none"}, api_key=key)
    written = dumps(made)
    loading = {"allowed_objects": [kind], "valid_namespaces": ["embedgrpc"]}
    assert loads(written, secrets_map={"EMBEDGRPC_API_KEY": key}, **loading) == made
    for text in (written, made.model_dump_json(), repr(made), str(made.model_dump())):
        assert key not in text
    assert pickle.loads(pickle.dumps(made)) == made
    monkeypatch.setenv("EMBEDGRPC_API_KEY", key)
    read = kind.model_validate_json(made.model_dump_json(exclude={"api_key"}))
    assert read == made


def test_errors_are_ours(target, keyed_target):
    """With their reasons; wrong settings are told at once."""
    embeddings = EmbedGrpcEmbeddings(target=target, options={"truncation": "none"})
    with pytest.raises(EncodeError) as raised:
        embeddings.embed_documents(["fine", "word " * 10_000])
    assert (raised.value.reason, list(raised.value.errors)) == ("INPUT_TOO_LONG", [1])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcEmbeddings(target=keyed_target, api_key="eg_wrong").embed_query("a")
    reranker = EmbedGrpcReranker(target=target, model="nobody")
    with pytest.raises(ModelNotFoundError):
        reranker.compress_documents([Document("a")], QUERY)
    for wrong in ({"targt": "a:1"}, {"target": "a"}, {"options": {"dimension": 1}}):
        with pytest.raises((TypeError, ValueError)):
            EmbedGrpcEmbeddings(**wrong)


def test_threads_and_loops_share_one(target):
    """As a web server uses it: from many threads, and loops that come and go."""
    embeddings = EmbedGrpcEmbeddings(target=target)
    expected = embeddings.embed_query(QUERY)
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(embeddings.embed_query, [QUERY] * 32)]
        loops = pool.map(lambda text: asyncio.run(embeddings.aembed_query(text)), [QUERY] * 8)
        found += [*loops]
    np.testing.assert_allclose(found, [expected] * len(found), atol=1e-6)


def test_search_finds_what_the_plain_client_finds(target, cranfield):
    """In a vector store of LangChain, alone and with the reranker after it."""
    embeddings = EmbedGrpcEmbeddings(target=target, model="minilm", options=SHORT)
    documents = [Document(text, id=name) for name, text in cranfield.documents.items()]
    store = InMemoryVectorStore.from_documents(documents, embeddings)

    reranker = EmbedGrpcReranker(target=target, model="cross", top_n=10)

    def search(text):
        return [one.id for one in store.similarity_search(text, k=10)]

    def search_and_rank(text):
        found = store.similarity_search(text, k=10)
        return [one.id for one in reranker.compress_documents(found, text)]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
    assert cranfield.ndcg(search_and_rank) == pytest.approx(cranfield.expected_reranked, abs=1e-3)
    assert cranfield.expected > 0.6
