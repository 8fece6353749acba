"""Static models through the running service: what has no vector is refused."""

import pytest

from embedgrpc.client import Client, EmbedGrpcError

MODEL = "static-potion"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\u0301", "the tokenizer makes no token of it"),
        ("\u0e01", "a vector of zeros has no direction"),
    ],
)
def test_a_text_without_a_vector_is_refused(
    fixture_client: Client, text: str, message: str
) -> None:
    """A text without tokens, or with unknown ones alone, fails; in a stream, it alone does."""
    with pytest.raises(EmbedGrpcError, match=message):
        fixture_client.embed([text], model=MODEL)
    good, bad = fixture_client.embed_stream(["a river", text], model=MODEL)
    assert good.vector is not None
    assert message in str(bad.error)


def test_a_text_cut_by_characters_is_reported(fixture_client: Client) -> None:
    """model2vec reads so many characters for each token of the limit; the rest is cut."""
    answer = fixture_client.embed(["the " * 383, "the " * 385], model=MODEL)
    assert answer.truncated.tolist() == [False, True]
