"""Retrieval with the served vectors finds what it finds with the reference's."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.retrieval import read_judgements, search_quality
from benchmarks.workloads import documents, queries
from embedgrpc.client import Client
from tests.service.conftest import running_server

TOLERANCE = 0.002


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of the collection, and its figures.

    Attributes:
        queries_taken: How many queries, from the first.
        documents_every: Takes each document whose number is a multiple, and all relevant ones.
        figures: The service's own, from runs whose figures on the whole collection were the
            reference's (0.3953 and 0.7756) to four places.
    """

    queries_taken: int
    documents_every: int
    figures: dict[str, float]

    @property
    def recall_cut(self) -> int:
        """How many documents count for recall."""
        (name,) = (name for name in self.figures if name.startswith("recall"))
        return int(name.removeprefix("recall@"))

    def measure(self, client: Client) -> dict[str, float]:
        """Search the sample; a judged document without a text counts as missed."""
        relevant = read_judgements()
        chosen = dict(list(queries().items())[: self.queries_taken])
        judged = set.union(*(relevant[query] for query in chosen))
        texts = {
            identifier: text
            for number, (identifier, text) in enumerate(documents().items())
            if identifier in judged or number % self.documents_every == 0
        }
        return search_quality(client, texts, chosen, relevant, recall_cut=self.recall_cut)


# It has 66 documents: among 100 are all relevant ones, whatever the vectors.
SMALL = Sample(4, 100, {"ndcg@10": 0.9142, "recall@10": 0.6533})
LARGE = Sample(20, 10, {"ndcg@10": 0.7039, "recall@100": 0.9641})


@pytest.mark.parametrize(
    "sample", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"]
)
def test_a_sample_of_cranfield_is_searched_as_well_as_with_the_reference(
    client: Client, sample: Sample
) -> None:
    """nDCG@10 and recall are those that go with the reference's full figures."""
    assert sample.measure(client) == pytest.approx(sample.figures, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_a_wrong_pooling_shows_in_both_figures(pooling: str, cache_dir: Path) -> None:
    """The small sample tells vectors of another pooling from the right ones."""
    with (
        running_server("--model-pooling", pooling, cache_dir=cache_dir) as address,
        Client(address) as client,
    ):
        figures = SMALL.measure(client)
    for name, right in SMALL.figures.items():
        assert abs(figures[name] - right) > TOLERANCE, name
