"""Pads sequences of different lengths into one rectangle."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


def _steps(length: int) -> IntArray:
    """Return the places of a row. `arange` lets other threads run, and then waits for its turn."""
    return _known_steps((length - 1).bit_length())[:length]


@cache
def _known_steps(power: int) -> IntArray:
    """Return the places of a row of 2 to this power: one row for each length would take 100 MB."""
    return np.arange(1 << power)


def pad(
    sequences: Sequence[TokenSequence],
    *,
    pad_token_id: int,
    left: bool,
    outputs: tuple[str, ...],
) -> PaddedBatch:
    """Pad sequences to the longest of them.

    Args:
        sequences: At least one; all of one task.
        pad_token_id: The token where the mask is 0.
        left: Whether padding comes before the tokens.
        outputs: Names of the graph outputs to compute.

    Returns:
        Arrays int64 [len(sequences), longest or 1].
    """
    lengths = np.array([len(sequence.input_ids) for sequence in sequences])[:, None]
    # A static model has texts without tokens; graphs need an axis of 1 at least.
    longest = max(1, int(lengths.max()))
    steps = _steps(longest)
    # All rows at once: with hundreds of short texts, a batch of a static model takes 1 ms.
    real = steps >= longest - lengths if left else steps < lengths
    input_ids = np.full(real.shape, pad_token_id, dtype=np.int64)
    input_ids[real] = np.concatenate([sequence.input_ids for sequence in sequences])
    attention_mask = real.astype(np.int64)
    token_type_ids = np.zeros(real.shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        if sequence.unattended:
            end = longest if left else len(sequence.input_ids)
            attention_mask[row, end - sequence.unattended : end] = 0
        if sequence.token_type_ids is not None:
            token_type_ids[row, real[row]] = sequence.token_type_ids
    prompt_tokens = None
    if any(sequence.prompt_tokens for sequence in sequences):
        prompt_tokens = np.array([sequence.prompt_tokens for sequence in sequences], np.int64)
    return PaddedBatch(
        input_ids,
        attention_mask,
        token_type_ids,
        outputs,
        task=sequences[0].task,
        prompt_tokens=prompt_tokens,
    )
