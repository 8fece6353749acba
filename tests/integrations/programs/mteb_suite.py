"""MTEB: its own tasks that need no network, and one of Cranfield."""

import os

import datasets
import mteb
import numpy as np
import pytest
from conftest import SHORT
from mteb import TaskMetadata
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.mocks import MOCK_TASK_TEST_GRID_MONOLINGUAL, mock_tasks
from mteb.models import CrossEncoderProtocol, EncoderProtocol
from sentence_transformers import CrossEncoder, SentenceTransformer

from benchmarks.retrieval import read_judgements
from embedgrpc.client.integrations.mteb import EmbedGrpcMtebCrossEncoder, EmbedGrpcMtebEncoder

TASKS = [type(task).__name__ for task in MOCK_TASK_TEST_GRID_MONOLINGUAL]


def score(model, task):
    """Return the main score of a task."""
    done = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return float(done.task_results[0].get_score())


@pytest.fixture(scope="module")
def served(target):
    return EmbedGrpcMtebEncoder(target, "embed")


@pytest.fixture(scope="module")
def local():
    return SentenceTransformer(os.environ["EMBED_FOLDER"], device="cpu")


@pytest.mark.parametrize("index", range(len(TASKS)), ids=TASKS)
def test_scores_are_those_of_the_model(index, served, local):
    """Of every kind of task of texts."""
    task = MOCK_TASK_TEST_GRID_MONOLINGUAL[index]
    assert score(served, type(task)()) == pytest.approx(score(local, type(task)()), abs=1e-4)


def test_a_cross_encoder_has_the_scores_of_the_model(target):
    """In a task of reranking."""
    served = EmbedGrpcMtebCrossEncoder(target, "cross")
    local = CrossEncoder(os.environ["CROSS_FOLDER"], device="cpu")
    for name in ("MockRerankingTask", "MockInstructionReranking"):
        task = getattr(mock_tasks, name)
        assert score(served, task()) == pytest.approx(score(local, task()), abs=1e-4)


def test_they_are_what_mteb_asks_for(target, served):
    """By its protocols; the revision of the results is the fingerprint of the model."""
    assert isinstance(served, EncoderProtocol)
    ranker = EmbedGrpcMtebCrossEncoder(target, "cross")
    assert isinstance(ranker, CrossEncoderProtocol)
    meta = served.mteb_model_meta
    assert (meta.name, meta.revision) == ("embedgrpc/embed", served.description.fingerprint)
    assert ranker.mteb_model_meta.is_cross_encoder


def test_they_also_stand_alone(target, served, client):
    """With the methods of a SentenceTransformer and a CrossEncoder."""
    assert np.array_equal(served.encode(["a text"]), client.encode(["a text"]))
    ranker = EmbedGrpcMtebCrossEncoder(target, "cross")
    assert ranker.predict([("a", "b")]).shape == (1,)


def test_blank_texts_end_no_evaluation(target, served):
    """They get zeros, and blank pairs the lowest score."""
    task = mock_tasks.MockRetrievalTask().metadata
    batches = [{"text": ["a text", " "]}, {"text": ["", "another"]}]
    vectors = served.encode(batches, task_metadata=task, hf_split="test", hf_subset="default")
    assert np.any(vectors, axis=1).tolist() == [True, False, False, True]
    ranker = EmbedGrpcMtebCrossEncoder(target, "cross")
    queries = [{"text": ["a query", "a query"]}, {"text": ["a query", "a query"]}]
    scores = ranker.predict(queries, batches, task_metadata=task, hf_split="", hf_subset="")
    assert scores[1] == scores[2] == scores.min()


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, cranfield):
    """MTEB's own nDCG@10 is that of the plain client."""

    class Cranfield(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Cranfield",
            description="Abstracts on aerodynamics",
            reference=None,
            dataset={"path": "none", "revision": "none"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_):
            relevant = read_judgements()
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": datasets.Dataset.from_list(
                            [{"id": name, "text": text} for name, text in documents.items()]
                        ),
                        "queries": datasets.Dataset.from_list(
                            [{"id": name, "text": text} for name, text in cranfield.queries.items()]
                        ),
                        # A judged document without a text counts as missed.
                        "relevant_docs": {
                            name: dict.fromkeys(relevant[name], 1) for name in cranfield.queries
                        },
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    documents = cranfield.documents
    encoder = EmbedGrpcMtebEncoder(target, "minilm")
    encoder.max_seq_length = SHORT["max_tokens"]
    found = score(encoder, Cranfield())
    assert found == pytest.approx(cranfield.expected, abs=1e-3)
