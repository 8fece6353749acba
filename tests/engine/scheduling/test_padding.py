import tracemalloc

import numpy as np
import pytest

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


def _sequence(*ids: int, types: tuple[int, ...] = (), prompt_tokens: int = 0) -> TokenSequence:
    return TokenSequence(
        input_ids=np.array(ids, np.int64),
        token_type_ids=np.array(types, np.int64) if types else None,
        token_count_before=len(ids),
        prompt_tokens=prompt_tokens,
    )


def _pad(*sequences: TokenSequence, left: bool = False) -> PaddedBatch:
    return pad(sequences, pad_token_id=9, left=left, outputs=("output",))


@pytest.mark.parametrize(
    ("left", "ids", "types"),
    [
        (False, [[1, 2, 9], [3, 4, 5]], [[0, 1, 0], [0, 0, 0]]),
        (True, [[9, 1, 2], [3, 4, 5]], [[0, 0, 1], [0, 0, 0]]),
    ],
)
def test_padding_is_on_one_side(left: bool, ids: list[int], types: list[int]) -> None:  # noqa: FBT001 - a parameter
    """The mask is 1 for the tokens alone, and types stay at their tokens."""
    batch = _pad(_sequence(1, 2, types=(0, 1)), _sequence(3, 4, 5), left=left)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == np.not_equal(ids, 9).astype(int).tolist()
    assert batch.token_type_ids.tolist() == types
    assert {batch.input_ids.dtype, batch.attention_mask.dtype} == {np.dtype(np.int64)}


def test_texts_without_tokens_are_all_padding() -> None:
    """The axis of tokens has a length of 1 at least."""
    batch = _pad(_sequence(), _sequence())
    assert batch.input_ids.tolist() == [[9], [9]]
    assert batch.attention_mask.tolist() == [[0], [0]]


def test_prompts_are_counted_where_one_is_left_out() -> None:
    """The number of prompt tokens is there for all sequences of the batch, or for none."""
    assert _pad(_sequence(1)).prompt_tokens is None
    counts = _pad(_sequence(1, 2, prompt_tokens=1), _sequence(3)).prompt_tokens
    assert counts is not None
    assert counts.tolist() == [1, 0]


def test_rows_of_many_lengths_leave_little_behind() -> None:
    """A client that sends texts of every length cannot fill the memory."""
    lengths = range(32_768 - 100, 32_768)
    tracemalloc.start()
    try:
        for length in lengths:
            _pad(TokenSequence(np.zeros(length, np.int64), None, length))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20
