"""A model that pools only the text: its prompts take part in attention alone."""

from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client

MODEL = "bert-prompt-left-out"
QUERY, DOCUMENT = "Where does the river flow?", "It flows to the sea."


def embed(client: Client, text: str, **options: Any) -> np.ndarray:
    """Return the vector of one text."""
    vectors: np.ndarray = client.embed([text], model=MODEL, **options).vectors
    return np.asarray(vectors[0])


def test_a_prompt_differs_from_the_same_words_in_the_text(fixture_client: Client) -> None:
    """Two calls with equal tokens get different vectors, at the same time too."""
    prompt = "Represent the text: "
    left_out = embed(fixture_client, DOCUMENT, prompt_name="document")
    pooled = embed(fixture_client, prompt + DOCUMENT)
    given = embed(fixture_client, DOCUMENT, prompt_text=prompt)
    assert np.abs(left_out - pooled).max() > 0.01
    assert np.array_equal(left_out, given)


def test_streams_leave_the_prompt_out(fixture_client: Client) -> None:
    """Each text of a stream has the vector that it has alone."""
    texts = [DOCUMENT, QUERY, "a", DOCUMENT * 9]
    results: list[Any] = list(fixture_client.embed_stream(texts, model=MODEL, prompt_name="query"))
    for text, result in zip(texts, results, strict=True):
        alone = embed(fixture_client, text, prompt_name="query")
        np.testing.assert_allclose(result.vector, alone, rtol=0, atol=1e-6)


def test_ranking_leaves_both_prompts_out(fixture_client: Client) -> None:
    """The score is the cosine of the vectors that Embed returns."""
    ranking = fixture_client.rerank(
        QUERY,
        [DOCUMENT],
        model=MODEL,
        query_prompt_name="query",
        document_prompt_name="document",
    )
    query = embed(fixture_client, QUERY, prompt_name="query")
    document = embed(fixture_client, DOCUMENT, prompt_name="document")
    assert ranking.results[0].score == pytest.approx(float(query @ document), abs=1e-6)
