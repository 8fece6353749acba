from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.client import Client, EmptyInputError, InputTooLongError, PartialEmbeddings
from tests.client.made_up import vector_of
from tests.client.servicer import Script, serving

TEXTS = ["a tower", "fail:EMPTY_INPUT", "long river", "fail:INPUT_TOO_LONG"]
TOO_LARGE = "x" * 2**22


def test_a_text_that_fails_has_no_vector(client: Client, script: Script) -> None:
    """The others have theirs; an index of a failed text raises its error."""
    result = client.embed(TEXTS, allow_partial=True)
    assert script.calls[0].allow_partial
    assert type(result) is PartialEmbeddings
    assert (len(result), len(result.embedded), result.indices.tolist()) == (4, 2, [0, 2])
    for index in (0, 2, -2):
        np.testing.assert_array_equal(result[index], vector_of(TEXTS[index]))
    with pytest.raises(EmptyInputError):
        result[1]
    with pytest.raises(InputTooLongError):
        result[-1]
    with pytest.raises(IndexError):
        result[4]
    with pytest.raises(EmptyInputError):
        np.asarray(result)
    with pytest.raises(EmptyInputError):
        result.require_all()
    assert not hasattr(result, "vectors")


def test_the_error_of_an_item_is_complete(client: Client) -> None:
    """Code, reason, message, label and retry delay arrive with each item."""
    (error,) = client.embed(["fail:OVERLOADED"], allow_partial=True).errors.values()
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert (error.message, error.metadata) == ("as asked", {"label": "MADE_UP"})
    assert (error.label, error.retry_delay_s) == ("MADE_UP", 1.5)
    ranking = client.rerank("q", ["fail:OVERLOADED", "q"], allow_partial=True)
    assert vars(ranking.errors[0]) == vars(error)
    (streamed,) = client.embed_stream(["fail:OVERLOADED"])
    assert vars(streamed.error) == vars(error)


def test_a_batch_without_failures_is_whole(client: Client) -> None:
    """`require_all` and numpy return the vectors of all texts."""
    result = client.embed(["a", "b"], allow_partial=True)
    np.testing.assert_array_equal(result.require_all().vectors, [vector_of("a"), vector_of("b")])
    np.testing.assert_array_equal(np.asarray(result), result.embedded.vectors)
    assert result.errors == {}


def test_a_document_that_fails_is_apart_from_the_ranking(client: Client) -> None:
    """Indices count all documents; failures are errors by index."""
    documents = ["fail:EMPTY_INPUT", "abc", "ab"]
    ranking = client.rerank("abc", documents, allow_partial=True)
    assert [(each.index, each.score) for each in ranking] == [(1, 3.0), (2, 2.0)]
    assert {index: type(error) for index, error in ranking.errors.items()} == {0: EmptyInputError}
    assert (ranking.input_tokens, ranking.query_tokens, ranking.document_tokens) == (7, 3, 4)
    assert client.rerank("abc", ["abc"]).errors == {}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client, texts: client.embed(texts), "texts"),
        (lambda client, texts: client.rerank("q", texts), "documents"),
    ],
)
def test_without_partial_results_the_error_names_every_input(
    client: Client, script: Script, call: Any, field: str
) -> None:
    """Each violation has the field and the reason, whether found by server or client."""
    with pytest.raises(EmptyInputError) as caught:
        call(client, TEXTS)
    assert [(each.field, each.reason) for each in caught.value.field_violations] == [
        (f"{field}[1]", "EMPTY_INPUT"),
        (f"{field}[3]", "INPUT_TOO_LONG"),
    ]
    assert len(script.calls) == 1
    with pytest.raises(InputTooLongError) as refused:
        call(client, ["a", TOO_LARGE, "b", TOO_LARGE])
    assert [(each.field, each.reason) for each in refused.value.field_violations] == [
        (f"{field}[1]", "INPUT_TOO_LONG"),
        (f"{field}[3]", "INPUT_TOO_LONG"),
    ]
    assert len(script.calls) == 1


def test_an_input_that_fits_into_no_request_is_left_out(client: Client, script: Script) -> None:
    """It fails alone, the others are sent, and all keep their positions."""
    texts = [TOO_LARGE, "abc", TOO_LARGE, "fail:EMPTY_INPUT", "ab"]
    result = client.embed(texts, allow_partial=True)
    assert [type(error).__name__ for error in result.errors.values()] == [
        "InputTooLongError",
        "InputTooLongError",
        "EmptyInputError",
    ]
    assert (list(result.errors), result.indices.tolist()) == ([0, 2, 3], [1, 4])
    assert result.errors[2].field_violations[0].field == "texts[2]"
    np.testing.assert_array_equal(result[4], vector_of("ab"))
    ranking = client.rerank("abc", texts, allow_partial=True)
    assert [each.index for each in ranking] == [1, 4]
    assert list(ranking.errors) == [0, 2, 3]
    assert len(script.calls) == 2
    nothing = client.embed([TOO_LARGE], allow_partial=True)
    assert (list(nothing.errors), len(nothing.embedded)) == ([0], 0)
    assert list(client.rerank("q", [TOO_LARGE], allow_partial=True).errors) == [0]
    assert len(script.calls) == 2


def test_an_input_that_the_server_s_core_refuses_fails_alone(client_class: type[Client]) -> None:
    """The client learns the limit from the answer, and sends the others without that input."""
    texts = ["abc", "x" * 5000, "ab"]
    with serving(max_request_bytes=4096) as (servicer, target):
        for _ in range(2):
            client = client_class(target, timeout_s=30)
            result = client.embed(texts, allow_partial=True)
            assert (list(result.errors), result.indices.tolist()) == ([1], [0, 2])
            client.close()
        client = client_class(target, timeout_s=30)
        ranking = client.rerank("abc", texts, allow_partial=True)
        assert (list(ranking.errors), [each.index for each in ranking]) == ([1], [0, 2])
        assert client.embed(["x" * 5000], allow_partial=True).indices.tolist() == []
        client.close()
        assert servicer.script.attempts == ["Embed"] * 4 + ["Rerank"] * 2
        client = client_class(target, timeout_s=30)
        with pytest.raises(InputTooLongError, match="query has 5000 bytes"):
            client.rerank("x" * 5000, ["a"], allow_partial=True)
        client.close()
