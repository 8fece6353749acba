"""The tokens of a text with their places in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.libraries.arrays import BoolArray, IntArray

# From these code points on, UTF-8 takes a byte more (RFC 3629).
_LONGER_FROM = (0x80, 0x800, 0x10000)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of one text.

    Attributes:
        ids: int64 [tokens].
        starts: int64 [tokens]; where each starts in the text, in characters; 0 for tokens that are
            not of the text.
        ends: int64 [tokens]; where each ends, exclusive.
        special: bool [tokens]; whether the model puts it around the text.
        of_prompt: bool [tokens]; whether it is of the prompt.
    """

    ids: IntArray
    starts: IntArray
    ends: IntArray
    special: BoolArray
    of_prompt: BoolArray

    @property
    def of_text(self) -> BoolArray:
        """Whether each token is of the text, neither special nor of the prompt; bool [tokens]."""
        return ~(self.special | self.of_prompt)


def assemble(
    parts: Sequence[IntArray],
    special: tuple[IntArray, IntArray] | None,
    *,
    prompt_characters: int,
    shift: int = 0,
) -> TokenizedText:
    """Join the parts of a text, and add its special tokens.

    Args:
        parts: int64 [tokens, 3]: id, start and end in the text with its prompt.
        special: The special tokens before and after; None to leave them out.
        prompt_characters: Length of the prompt.
        shift: Characters that were cut off at the start of the text.
    """
    rows = np.concatenate(parts)
    ids, starts, ends = rows.T
    of_prompt = (ends <= prompt_characters) & (prompt_characters > 0)
    starts = np.where(of_prompt, 0, np.maximum(starts - prompt_characters, 0) + shift)
    ends = np.where(of_prompt, 0, ends - prompt_characters + shift)
    before, after = special or (np.empty(0, np.int64), np.empty(0, np.int64))
    padding = (len(before), len(after))
    is_special = np.zeros(len(before) + len(ids) + len(after), np.bool_)
    is_special[: len(before)] = True
    is_special[len(before) + len(ids) :] = True
    return TokenizedText(
        ids=np.concatenate([before, ids, after]),
        starts=np.pad(starts, padding),
        ends=np.pad(ends, padding),
        special=is_special,
        of_prompt=np.pad(of_prompt, padding),
    )


def byte_places(text: str) -> IntArray:
    """Return where each character starts in UTF-8, and where the text ends.

    Returns:
        int64 [characters + 1].
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = np.ones(len(codes), np.int64)
    for first in _LONGER_FROM:
        sizes += codes >= first
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """The tokens of a text with their places in characters and in bytes.

    Attributes:
        tokens: The tokens.
        byte_starts: int64 [tokens]; where each starts in the text, in bytes of UTF-8.
        byte_ends: int64 [tokens]; where each ends, exclusive.
    """

    tokens: TokenizedText
    byte_starts: IntArray
    byte_ends: IntArray

    @classmethod
    def find(cls, tokens: TokenizedText, text: str) -> "TokenPlaces":
        """Add the places in bytes. Takes time in proportion to the text."""
        places = byte_places(text)
        return cls(tokens, places[tokens.starts], places[tokens.ends])
