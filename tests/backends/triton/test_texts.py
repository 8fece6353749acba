import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.backends.triton.tensors import encode_texts
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import TokenLimitError
from tests.backends.triton.kserve_server import decode_texts

# All texts that a protobuf string can hold.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as ids and mask, int64 [rows, longest]."""
    longest = max(map(len, rows))
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    return ids, mask


@given(st.lists(ANY_TEXT, min_size=1, max_size=5))
def test_texts_survive(texts: list[str]) -> None:
    """Texts reach the server's input unchanged, without the padding."""
    ids = Tokenizer.of_bytes().encode(texts)
    assert {one.dtype for one in ids} == {np.dtype(np.int64)}
    assert decode_texts(encode_texts(*padded([one.tolist() for one in ids]))) == texts


@given(ANY_TEXT, st.integers(0, 30), st.sampled_from([Truncation.END, Truncation.START]))
def test_cut_texts_are_texts(text: str, limit: int, truncation: Truncation) -> None:
    """A cut text arrives as its longest part of whole characters within the limit."""
    tokenizer = Tokenizer.of_bytes()
    (ids,) = tokenizer.encode([text])
    sequence = tokenizer.build_sequence(ids, max_tokens=limit, truncation=truncation)
    (sent,) = decode_texts(encode_texts(*padded([sequence.input_ids.tolist()])))
    counts = range(len(text) + 1)
    parts = [text[len(text) - one :] if truncation is Truncation.START else text[:one]
             for one in counts]  # fmt: skip
    assert sent == max((one for one in parts if len(one.encode()) <= limit), key=len)
    assert sequence.truncated == (len(text.encode()) > limit)


def test_bytes_have_no_special_tokens() -> None:
    """The tokenizer of bytes adds no tokens, and its limit counts bytes."""
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.special_token_count == 0
    (ids,) = tokenizer.encode(["äöü"])
    with pytest.raises(TokenLimitError) as caught:
        tokenizer.build_sequence(ids, max_tokens=5, truncation=Truncation.NONE)
    assert (caught.value.token_count, caught.value.max_tokens) == (6, 5)
