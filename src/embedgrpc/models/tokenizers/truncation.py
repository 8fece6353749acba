"""How a sequence that is too long is made to fit."""

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.kinds import Truncation

IntArray = NDArray[np.int64]


class TokenLimitError(ValueError):
    """A sequence is longer than it may be, and must not be cut or cannot be.

    Attributes:
        token_count: Its length, special tokens included.
        max_tokens: The length that is allowed.
    """

    def __init__(self, token_count: int, max_tokens: int) -> None:
        super().__init__(f"{token_count} tokens are more than the {max_tokens} allowed")
        self.token_count = token_count
        self.max_tokens = max_tokens


def cut(ids: IntArray, budget: int, truncation: Truncation) -> IntArray:
    """Cuts a text to a number of tokens.

    Args:
        ids: int64 [tokens].
        budget: Tokens to keep at most.
        truncation: Which end to cut; anything but START cuts the end.

    Returns:
        int64 [tokens].
    """
    if truncation is Truncation.START:
        return ids[max(0, len(ids) - budget) :]
    return ids[:budget]


def share(first: int, second: int, budget: int) -> tuple[int, int]:
    """Shares a budget as cutting the longer of two token by token does.

    What is left over of an odd budget goes to the longer one, and to the second of equals.

    Args:
        first: Tokens of the first text.
        second: Tokens of the second.
        budget: Fewer than the two have together.

    Returns:
        Tokens to keep of each.

    Source: the `longest_first` strategy of the tokenizers library.
    """
    shorter = min(first, second)
    if shorter <= budget // 2:
        rest = budget - shorter
        return (first, rest) if first <= second else (rest, second)
    half, rest = budget // 2, budget - budget // 2
    return (half, rest) if first <= second else (rest, half)
