"""Retrieval with the served vectors finds what it finds with the reference's."""

import pytest

from benchmarks.retrieval import read_judgements, search_quality
from benchmarks.workloads import documents, queries
from embedgrpc.client import Client

QUERIES = 20
DOCUMENTS_EVERY = 10


def test_a_sample_of_cranfield_is_searched_as_well_as_with_the_reference(client: Client) -> None:
    """nDCG@10 and Recall@100 of the sample are those that go with the reference's full figures.

    The figures of the sample are the service's own, from a run whose figures on the whole
    collection were the reference's (0.3953 and 0.7756) to four places.
    """
    all_documents = documents()
    relevant = read_judgements()
    # A judged document that has no text cannot be found; it counts as missed.
    chosen = dict(list(queries().items())[:QUERIES])
    judged = set.union(*(relevant[query] for query in chosen))
    sample = {
        identifier: text
        for number, (identifier, text) in enumerate(all_documents.items())
        if identifier in judged or number % DOCUMENTS_EVERY == 0
    }
    figures = search_quality(client, sample, chosen, relevant)
    assert figures == {
        "ndcg@10": pytest.approx(0.7039, abs=0.002),
        "recall@100": pytest.approx(0.9641, abs=0.002),
    }
