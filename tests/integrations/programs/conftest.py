"""What the suites of frameworks share."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from benchmarks.retrieval import measure_ndcg, read_judgements
from benchmarks.workloads import documents, queries
from embedgrpc.client import Client

# A part of the collection, and of each text, for a part of the time.
_QUERIES = 15
_OTHER_DOCUMENTS = 80
SHORT = {"max_tokens": 64}
_CUT = 10


@dataclass(frozen=True)
class Cranfield:
    """A part of the Cranfield collection.

    Attributes:
        documents: Texts by id.
        queries: Texts by id.
        expected: nDCG@10 of the plain client with the model "minilm" and the options `SHORT`.
        expected_reranked: That of the same ten documents in the order of the model "cross". Its
            weights are random, so it is a low one.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    expected: float = 0
    expected_reranked: float = 0

    def ndcg(self, search: Callable[[str], Sequence[str]]) -> float:
        """Return the mean nDCG@10 of a function that finds ids of documents for a text."""
        relevant = read_judgements()
        scores = [
            measure_ndcg(list(search(text)[:_CUT]), relevant[query])
            for query, text in self.queries.items()
        ]
        return float(np.mean(scores))


@pytest.fixture(scope="session")
def target():
    """The address of a server with the models embed (the default), minilm, cross and splade."""
    return os.environ["SERVED_TARGET"]


@pytest.fixture(scope="session")
def keyed_target():
    """The address of a server with the model embed, for callers with a key."""
    return os.environ["KEYED_TARGET"]


@pytest.fixture(scope="session")
def key():
    """The key of the other server."""
    return os.environ["KEYED_KEY"]


@pytest.fixture(scope="session")
def client(target):
    """A plain client of the server."""
    with Client(target) as client:
        yield client


@pytest.fixture(scope="session")
def cranfield(client):
    """A part of the Cranfield collection, and how well the plain client finds its documents."""
    relevant = read_judgements()
    texts = dict(list(queries().items())[:_QUERIES])
    wanted = set().union(*(relevant[query] for query in texts))
    others = [name for name in documents() if name not in wanted][:_OTHER_DOCUMENTS]
    chosen = {name: text for name, text in documents().items() if name in wanted or name in others}
    corpus = client.encode_document(list(chosen.values()), model="minilm", **SHORT)
    names = np.array(list(chosen))

    def search(text):
        scores = corpus @ client.encode_query(text, model="minilm", **SHORT)
        return names[np.argsort(-scores, kind="stable")].tolist()[:_CUT]

    def search_and_rank(text):
        found = search(text)
        ranked = client.rank(text, [chosen[name] for name in found], model="cross")
        return [found[one["corpus_id"]] for one in ranked]

    part = Cranfield(chosen, texts)
    return replace(part, expected=part.ndcg(search), expected_reranked=part.ndcg(search_and_rank))
