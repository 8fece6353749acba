"""Pads sequences of different lengths into one rectangle."""

from collections.abc import Sequence

import numpy as np

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


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
    # A static model has texts without tokens; graphs need an axis of 1 at least.
    longest = max(1, *(len(sequence.input_ids) for sequence in sequences))
    shape = (len(sequences), longest)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        columns = slice(longest - length, longest) if left else slice(0, length)
        input_ids[row, columns] = sequence.input_ids
        attention_mask[row, columns] = 1
        if sequence.unattended:
            attention_mask[row, columns][length - sequence.unattended :] = 0
        if sequence.token_type_ids is not None:
            token_type_ids[row, columns] = sequence.token_type_ids
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
