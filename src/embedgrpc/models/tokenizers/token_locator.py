"""From texts to tokens with their places in the text."""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints


class TokenLocator:
    """Tokenizes texts, and says where each token stands. Thread-safe.

    Args:
        tokenizer: The model's tokenizer.
        cut_points: Where a text can be cut without changing its tokens; None if unknown.

    Attributes:
        cut_points: The same.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, cut_points: CutPoints | None) -> None:
        self.cut_points = cut_points
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Tokenize texts.

        Returns:
            int64 [tokens, 3] for each text, without special tokens: the id, and where the token
            starts and ends (exclusive) in the text, in characters.
        """
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = []
        for encoding in encodings:
            located = np.empty((len(encoding), 3), np.int64)
            located[:, 0] = encoding.ids
            located[:, 1:] = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            rows.append(located)
        return rows

    def entries(self, ids: Iterable[int]) -> list[str]:
        """Return the vocabulary entries of some ids."""
        return [self._tokenizer.id_to_token(one) or "" for one in ids]
