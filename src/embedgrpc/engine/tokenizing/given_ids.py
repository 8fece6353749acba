"""Checks token ids that a request gives in place of a text."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from embedgrpc.engine.errors import EmptyInputError, InvalidRequestError, UnsupportedError
from embedgrpc.engine.tokenizing.jobs import Tokenized
from embedgrpc.libraries.arrays import BoolArray, IntArray

_INT64: Final = np.iinfo(np.int64)
# So many are converted in less than a millisecond, during which no other thread runs.
_IDS_AT_ONCE = 16_384


def check_ids(ids: Sequence[int], known: BoolArray | None, *, prompt: str, field: str) -> Tokenized:
    """Return token ids as if the tokenizer had made them of a text.

    Takes time in proportion to their number: call it off the event loop.

    Args:
        ids: The ids, without the model's special tokens.
        known: bool [highest id + 1]; the ids that the tokenizer can make. None if the model
            tokenizes on its own.
        prompt: What goes in front of each text.
        field: Their place in the request, such as `texts[3]`.

    Raises:
        UnsupportedError: There is a prompt, or the model tokenizes on its own.
        EmptyInputError: There are no ids.
        InvalidRequestError: The tokenizer has no token with one of the ids.
    """
    if known is None:
        raise UnsupportedError(
            f"{field} has token ids, but the model tokenizes on its own: send texts", field=field
        )
    if prompt:
        # A tokenizer may join the end of the prompt and the start of the text in one token.
        raise UnsupportedError(
            f"{field} has token ids, which the prompt of {len(prompt)} characters cannot be put in"
            " front of: send the text",
            field=field,
        )
    if not len(ids):
        raise EmptyInputError(
            f"{field} holds no text: it has 0 token ids",
            field=field,
        )
    found = _to_array(ids, field=field)
    outside = (found < 0) | (found >= len(known))
    wrong = outside | ~known[np.where(outside, 0, found)]
    if wrong.any():
        place = int(wrong.argmax())
        raise InvalidRequestError(
            f"{field}[{place}] is {found[place]}: the model's tokenizer has no such token for a"
            f" text; its ids are 0 to {len(known) - 1}",
            field=f"{field}[{place}]",
        )
    return Tokenized(found, characters_cut=False)


def _to_array(ids: Sequence[int], *, field: str) -> IntArray:
    """Return the ids; int64 [tokens]."""
    try:
        parts = [
            np.array(ids[start : start + _IDS_AT_ONCE], np.int64)
            for start in range(0, len(ids), _IDS_AT_ONCE)
        ]
        return np.concatenate(parts)
    except OverflowError:
        raise InvalidRequestError(
            f"{field} has a token id outside {_INT64.min} to {_INT64.max}", field=field
        ) from None
