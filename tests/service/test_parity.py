"""The answers of the running service against those of the reference implementation."""

import json
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client
from tests.service.conftest import FIXTURES

DENSE = ("bert-mean", "bert-cls", "bert-st54")
CROSS = ("cross-bert", "cross-xlmr")


def expected(name: str) -> dict[str, Any]:
    """Reads what the reference answers for a folder."""
    answers: dict[str, Any] = json.loads((FIXTURES / name / "expected.json").read_text("utf-8"))
    return answers


def test_the_default_model_gives_the_vectors_of_the_reference(client: Client) -> None:
    """Cosine, every number and the token counts of 40 texts agree, in one call and in a stream."""
    reference = expected("all-MiniLM-L6-v2")
    vectors = np.load(FIXTURES / "all-MiniLM-L6-v2" / "expected.npz")["vectors"]
    answer = client.embed(reference["texts"])
    results: list[Any] = list(client.embed_stream(reference["texts"]))
    streamed = np.stack([one.vector for one in results])
    assert answer.token_counts.tolist() == reference["token_counts"]
    assert answer.truncated.tolist() == [
        before > after
        for before, after in zip(
            reference["token_counts_before_truncation"], reference["token_counts"], strict=True
        )
    ]
    for rows in (answer.vectors, streamed):
        assert (rows * vectors).sum(axis=1).min() >= 0.99999
        assert np.abs(rows - vectors).max() <= reference["tolerance"]


def test_one_text_has_one_vector_however_it_is_sent(client: Client) -> None:
    """Alone, among 64, beside a text of 256 tokens and in a stream: the same within 1e-6."""
    text = "Gas turbines push a vehicle forward."
    alone = client.embed([text]).vectors[0]
    among = client.embed([text] * 3 + [f"text number {number}" for number in range(61)]).vectors[0]
    beside = client.embed(["spam " * 400, text]).vectors[1]
    streamed = next(iter(client.embed_stream([text]))).vector
    for vector in (among, beside, streamed):
        assert np.abs(vector - alone).max() <= 1e-6


@pytest.mark.parametrize("name", DENSE)
def test_local_folders_give_the_vectors_of_the_reference(fixture_client: Client, name: str) -> None:
    """Every way of asking that a folder's reference answers has is answered alike."""
    reference = expected(name)
    for asked in reference["outputs"].values():
        answer = fixture_client.embed(
            reference["texts"],
            model=name,
            normalize=asked["normalize"],
            dimensions=asked["dimensions"] or 0,
            prompt_name=asked["prompt_name"],
        )
        deviation = np.abs(answer.vectors - np.array(asked["vectors"], np.float32)).max()
        assert deviation <= reference["tolerance"]
        assert answer.token_counts.tolist() == asked["token_counts"]


@pytest.mark.parametrize("name", CROSS)
def test_cross_encoders_give_the_scores_of_the_reference(fixture_client: Client, name: str) -> None:
    """Logits, sigmoids and the default scale agree for every pair, over-long ones included."""
    reference = expected(name)
    scales: dict[str, Any] = {"logits": "raw", "sigmoid": "sigmoid", "default": None}
    for entry, scale in scales.items():
        scores = [
            fixture_client.rerank(query, [document], model=name, score_scale=scale).results[0].score
            for query, document in reference["pairs"]
        ]
        difference = np.abs(np.array(scores) - reference["outputs"][entry]["scores"]).max()
        assert difference <= reference["tolerance"], entry


@pytest.mark.parametrize("name", CROSS)
def test_documents_come_back_in_the_order_of_the_reference(
    fixture_client: Client, name: str
) -> None:
    """One query with its documents is ranked as the reference ranks it."""
    rank = expected(name)["outputs"]["rank"]
    ranking = fixture_client.rerank(rank["query"], rank["documents"], model=name)
    assert [one.index for one in ranking.results] == rank["order"]


def test_an_embedding_model_ranks_by_cosine(client: Client) -> None:
    """The score of a document is the cosine of its vector with the query's."""
    query, documents = "capital of France", ["Tea is hot.", "Paris is the capital of France."]
    vectors = client.embed([query, *documents]).vectors
    ranking = client.rerank(query, documents, return_documents=True)
    assert [one.document for one in ranking.results] == documents[::-1]
    for one in ranking.results:
        assert one.score == pytest.approx(vectors[0] @ vectors[one.index + 1], abs=1e-6)


@pytest.mark.parametrize(
    ("encoding", "tolerance"), [("float16", 1e-3), ("bfloat16", 4e-3), ("int8", 2e-3)]
)
def test_encodings_keep_the_vector(client: Client, encoding: Any, tolerance: float) -> None:
    """A compact encoding gives back the float32 vector within its own precision."""
    texts = expected("all-MiniLM-L6-v2")["texts"]
    exact = client.embed(texts).vectors
    decoded = client.embed(texts, encoding=encoding).to_float32()
    assert 0 < np.abs(decoded - exact).max() <= tolerance


def test_ubinary_keeps_the_signs(client: Client) -> None:
    """Each bit tells whether the number is above zero, most significant bit first."""
    texts = expected("all-MiniLM-L6-v2")["texts"]
    exact = client.embed(texts, dimensions=12).vectors
    packed = client.embed(texts, dimensions=12, encoding="ubinary").vectors.astype(np.uint8)
    assert np.array_equal(np.unpackbits(packed, axis=1, count=12), exact > 0)


def test_models_are_listed_as_they_are(fixture_client: Client) -> None:
    """The list has every model, by id, with what its files say."""
    models = {model.id: model for model in fixture_client.list_models()}
    assert list(models) == sorted([*DENSE, *CROSS])
    for name in DENSE:
        settings = expected(name)["settings"]
        assert models[name].dimensions == settings["dimension"]
        assert models[name].max_input_tokens == settings["max_seq_length"]
        assert models[name].normalized == settings["normalize"]
    for name in CROSS:
        assert models[name].max_input_tokens == expected(name)["settings"]["max_seq_length"]
        assert models[name].dimensions == 0
    assert len({model.fingerprint for model in models.values()}) == len(models)
