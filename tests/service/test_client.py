"""The client of this repository against the server, by what both promise each other."""

from pathlib import Path

import numpy as np
import pytest

from embedgrpc.client import (
    AsyncClient,
    Client,
    EmptyInputError,
    InputTooLongError,
    InvalidRequestError,
    MessageTooLargeError,
    UnsupportedError,
)
from tests.service.conftest import running_server

TEXTS = ["The tower is 330 metres tall.", " ", "Rivers flow to the sea.", ""]
CROSS = "cross-bert"
SMALL_BYTES = 65536


def test_a_batch_is_answered_in_part(client: Client) -> None:
    """Blank texts have errors; the others have the vectors that they have alone."""
    result = client.embed(TEXTS, allow_partial=True)
    assert {index: type(error) for index, error in result.errors.items()} == {
        1: EmptyInputError,
        3: EmptyInputError,
    }
    alone = client.embed([TEXTS[0], TEXTS[2]])
    np.testing.assert_allclose(result.embedded.vectors, alone.vectors, atol=1e-5)
    np.testing.assert_array_equal(result[2], result.embedded.vectors[1])
    with pytest.raises(EmptyInputError) as caught:
        client.embed(TEXTS)
    assert [(each.field, each.reason) for each in caught.value.field_violations] == [
        ("texts[1]", "EMPTY_INPUT"),
        ("texts[3]", "EMPTY_INPUT"),
    ]


def test_documents_fail_alone(fixture_client: Client) -> None:
    """A ranking has the documents with a score, and the errors of the others by index."""
    ranking = fixture_client.rerank("how tall?", TEXTS, model=CROSS, allow_partial=True)
    assert sorted(each.index for each in ranking) == [0, 2]
    assert list(ranking.errors) == [1, 3]
    assert ranking.query_tokens + ranking.document_tokens <= ranking.input_tokens
    assert min(ranking.query_tokens, ranking.document_tokens) > 0
    with pytest.raises(EmptyInputError) as caught:
        fixture_client.rerank("how tall?", TEXTS, model=CROSS)
    assert len(caught.value.field_violations) == 2


def test_options_of_a_ranking_are_understood(fixture_client: Client) -> None:
    """A prompt of the query changes the scores; an instruction needs a model that takes one."""
    documents = TEXTS[:1]
    plain = fixture_client.rerank("how tall?", documents, model=CROSS, priority="bulk")
    prompted = fixture_client.rerank(
        "how tall?", documents, model=CROSS, query_prompt_text="rivers: ", max_tokens=8
    )
    assert plain[0].score != prompted[0].score
    with pytest.raises(UnsupportedError) as caught:
        fixture_client.rerank("how tall?", documents, model=CROSS, instruction="be kind")
    assert caught.value.field_violations[0].field == "options.instruction"


def test_a_stream_ranks_as_a_call_does(fixture_client: Client) -> None:
    """Queries of many parts too: more documents than one message may hold."""
    documents = [f"Tower number {number} is {number} metres tall." for number in range(300)]
    inputs = [(number, f"how tall is {number}?", documents) for number in range(8)]
    with fixture_client.rerank_stream(inputs, model=CROSS, top_n=3) as stream:
        most = stream.ready().max_part_inputs
        results = {result.id: result for result in stream}
    assert most < len(documents)
    assert sorted(results) == list(range(8))
    for number, query, _ in (inputs[0], inputs[7]):
        streamed = results[number].ranking
        assert streamed is not None
        alone = fixture_client.rerank(query, documents, model=CROSS, top_n=3)
        np.testing.assert_allclose(
            [each.score for each in streamed], [each.score for each in alone], atol=1e-4
        )
        assert (streamed.fingerprint, streamed.model) == (alone.fingerprint, alone.model)


async def test_an_asynchronous_stream_tells_queries_that_fail(fixture_target: str) -> None:
    """A query that is blank, or has a blank document, fails alone."""
    inputs = [("good", "a", ["b"]), ("blank", "a", ["b", ""]), ("last", "c", ["d"])]
    async with AsyncClient(fixture_target) as client:
        stream = client.rerank_stream(inputs, model=CROSS)
        results = {result.id: result async for result in stream}
        whole = [r async for r in client.rerank_stream(inputs, model=CROSS, allow_partial=True)]
    assert [type(results[name].error) for name in ("good", "blank", "last")] == [
        type(None),
        EmptyInputError,
        type(None),
    ]
    assert all(result.ranking is not None for result in whole)


def test_tokens_are_those_that_the_model_reads(client: Client) -> None:
    """Places cut the text; counts agree with the tokens of the vectors."""
    text = "Türme: 330 m 塔"
    (tokenized,) = client.tokenize([text])
    of_text = ~(tokenized.special | tokenized.of_prompt)
    starts, ends = tokenized.character_starts[of_text], tokenized.character_ends[of_text]
    assert "".join(text[a:b] for a, b in zip(starts, ends, strict=True)) == text.replace(" ", "")
    raw = text.encode()
    places = zip(tokenized.byte_starts[of_text], tokenized.byte_ends[of_text], strict=True)
    assert b"".join(raw[a:b] for a, b in places).decode() == text.replace(" ", "")
    counts = client.count_tokens([text, ""])
    assert counts.token_counts.tolist() == [len(tokenized), 2]
    assert client.embed([text]).token_counts.tolist() == [len(tokenized)]


def test_the_server_and_its_models_are_described(client: Client) -> None:
    """Limits are the same for the server, a model and a stream."""
    server = client.get_server()
    (model,) = client.list_models()
    assert server.default_model == model.id
    assert server.contract_version.startswith("1.")
    assert server.uptime_s > 0
    assert model.limits.max_inputs == server.limits.max_inputs > 0
    assert (model.state, model.takes_instruction) == ("ready", False)
    assert client.count_tokens(["a"]).max_tokens == model.max_tokens > 0
    with client.embed_stream(["a"]) as stream:
        assert stream.ready().limits == model.limits


def test_the_limit_of_the_server_holds_in_the_client(cache_dir: Path) -> None:
    """A stream announces it before any text is sent; a unary call names the text at fault."""
    with (
        running_server("--max-request-bytes", str(SMALL_BYTES), cache_dir=cache_dir) as target,
        Client(target) as client,
    ):
        with pytest.raises(MessageTooLargeError):
            client.embed(["x " * (SMALL_BYTES // 4)] * 3)
        with pytest.raises(InputTooLongError):
            Client(target).embed(["a", "x" * SMALL_BYTES])
        with Client(target) as fresh:
            results = list(fresh.embed_stream(["a", "x" * SMALL_BYTES, "b"]))
            assert [type(result.error) for result in results] == [
                type(None),
                InputTooLongError,
                type(None),
            ]
            partial = fresh.embed(["a", "x" * SMALL_BYTES], allow_partial=True)
            assert list(partial.errors) == [1]


def test_an_array_ranks_as_the_model_does(client: Client) -> None:
    """The array, one vector and the similarity of the server's default model fit together."""
    texts = ["The tower is 330 metres tall.", "Rivers flow to the sea.", "It is red."]
    vectors = client.encode_document(texts)
    np.testing.assert_allclose(vectors, client.embed(texts).vectors, atol=1e-5)
    scores = client.similarity(client.encode_query("How tall is the tower?"), vectors)
    assert scores.shape == (1, 3)
    assert scores.argmax() == 0
    ranked = client.rank("How tall is the tower?", texts, top_k=1, return_documents=True)
    assert ranked[0]["text"] == texts[0]
    client.wait_until_ready(60)
    with pytest.raises(InvalidRequestError, match="use encode or embed_stream"):
        client.embed(["a"] * (client.get_server().limits.max_inputs + 1))
