"""Retrieval with the served vectors finds what it finds with the reference's."""

import pytest

from benchmarks.retrieval import read_judgements, search_quality
from benchmarks.workloads import documents, queries
from embedgrpc.client import Client

# The figures of each sample are the service's own, from runs whose figures on the whole collection
# were the reference's (0.3953 and 0.7756) to four places.
SMALL = (4, 100, 0.9142, 1.0)
LARGE = (20, 10, 0.7039, 0.9641)


@pytest.mark.parametrize(
    ("queries_taken", "documents_every", "ndcg", "recall"),
    [SMALL, pytest.param(*LARGE, marks=pytest.mark.slow)],
    ids=["small", "large"],
)
def test_a_sample_of_cranfield_is_searched_as_well_as_with_the_reference(
    client: Client, queries_taken: int, documents_every: int, ndcg: float, recall: float
) -> None:
    """nDCG@10 and Recall@100 are those that go with the reference's full figures."""
    all_documents = documents()
    relevant = read_judgements()
    # A judged document that has no text cannot be found; it counts as missed.
    chosen = dict(list(queries().items())[:queries_taken])
    judged = set.union(*(relevant[query] for query in chosen))
    sample = {
        identifier: text
        for number, (identifier, text) in enumerate(all_documents.items())
        if identifier in judged or number % documents_every == 0
    }
    figures = search_quality(client, sample, chosen, relevant)
    assert figures == {
        "ndcg@10": pytest.approx(ndcg, abs=0.002),
        "recall@100": pytest.approx(recall, abs=0.002),
    }
