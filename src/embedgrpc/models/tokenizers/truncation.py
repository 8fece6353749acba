"""Truncates sequences that are too long."""

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.kinds import Truncation


class TokenLimitError(ValueError):
    """A sequence is too long, and must not be truncated or cannot be.

    Attributes:
        token_count: Special tokens included.
        max_tokens: The limit.
    """

    def __init__(self, token_count: int, max_tokens: int) -> None:
        super().__init__(f"{token_count} tokens are more than the {max_tokens} allowed")
        self.token_count = token_count
        self.max_tokens = max_tokens


def cut(ids: IntArray, budget: int, truncation: Truncation) -> IntArray:
    """Keep at most `budget` tokens of a text.

    Args:
        ids: int64 [tokens].
        budget: At least 0.
        truncation: START cuts the start, all others the end.

    Returns:
        int64 [at most budget].
    """
    if truncation is Truncation.START:
        return ids[max(0, len(ids) - budget) :]
    return ids[:budget]


def share(first: int, second: int, budget: int) -> tuple[int, int]:
    """Share a budget between two texts: the same as cutting the longer one token by token.

    The odd token goes to the longer text; if both are equally long, to the second.

    Args:
        first: Tokens of the first text.
        second: Tokens of the second text.
        budget: Less than both together.

    Returns:
        The tokens to keep of each text.

    Source: the `longest_first` strategy of the tokenizers library.
    """
    shorter = min(first, second)
    if shorter <= budget // 2:
        rest = budget - shorter
        return (first, rest) if first <= second else (rest, second)
    half, rest = budget // 2, budget - budget // 2
    return (half, rest) if first <= second else (rest, half)
