"""From texts to tokens with their places in the text."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import BoolArray, IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints
from embedgrpc.models.tokenizers.known_ids import find_known_ids


class TokenLocator:
    """Tokenizes texts, and says where each token stands. Thread-safe.

    Args:
        tokenizer: The model's tokenizer.

    Attributes:
        cut_points: None, as the caller cuts long texts.
    """

    cut_points: CutPoints | None = None

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
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

    @cached_property
    def known_ids(self) -> BoolArray:
        """Which ids the tokenizer can make of a text; bool [highest id + 1]."""
        return find_known_ids(self._tokenizer)
