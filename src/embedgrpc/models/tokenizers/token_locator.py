"""From texts to tokens with their places in the text, and back from tokens to texts."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import BoolArray, IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints
from embedgrpc.models.tokenizers.known_ids import find_known_ids
from embedgrpc.models.tokenizers.table_tokenizer import find_unknown_id


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

    def find_ids(self, entries: Iterable[str]) -> list[int | None]:
        """Return the ids of vocabulary entries; see `Tokenizer.find_ids`."""
        unknown = find_unknown_id(self._tokenizer)
        found = map(self._tokenizer.token_to_id, entries)
        return [unknown if one is None else one for one in found]

    def find_unknown(self, ids: Iterable[int]) -> int | None:
        """Return the first place with an id that the vocabulary lacks; None if there is none."""
        for place, one in enumerate(ids):
            if self._tokenizer.id_to_token(one) is None:
                return place
        return None

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of some ids, all of which the vocabulary has.

        Args:
            ids: The ids.
            skip_special: Whether to leave out special tokens.
        """
        # Other than `decode`, this releases the GIL.
        (text,) = self._tokenizer.decode_batch([ids], skip_special_tokens=skip_special)
        return str(text)

    @cached_property
    def known_ids(self) -> BoolArray:
        """Which ids the tokenizer can make of a text; bool [highest id + 1]."""
        return find_known_ids(self._tokenizer)
