"""Checks texts before they are tokenized."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from embedgrpc.engine.errors import EmptyInputError, InputTooLongError
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.tokenizers.blanks import BLANKS
from embedgrpc.models.tokenizers.truncation import TokenLimitError

# A text, or the ids of its tokens without the model's special tokens.
TextOrIds: TypeAlias = str | Sequence[int]

# Ranges that contain all invisible characters: separators (Z), controls (Cc), format characters
# (Cf) and surrogates (Cs). Unassigned and private-use characters may be visible.
_INVISIBLE_RANGES = (
    "\x00\x20",
    "\x7f\xa0",
    "\xad\xad",
    "\u0600\u0605",
    "\u061c\u061c",
    "\u06dd\u06dd",
    "\u070f\u070f",
    "\u0890\u0891",
    "\u08e2\u08e2",
    "\u1680\u1680",
    "\u180e\u180e",
    "\u2000\u200f",
    "\u2028\u202f",
    "\u205f\u206f",
    "\u3000\u3000",
    "\ud800\udfff",
    "\ufeff\ufeff",
    "\ufff9\ufffb",
    "\U000110bd\U000110bd",
    "\U000110cd\U000110cd",
    "\U00013430\U0001345f",
    "\U0001bca0\U0001bca3",
    "\U0001d173\U0001d17a",
    "\U000e0001\U000e0001",
    "\U000e0020\U000e007f",
)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] not in "ZC" or category in ("Co", "Cn")


def _compile_visible() -> re.Pattern[str]:
    """Compile a pattern for one visible character, by the Unicode version of this Python."""
    invisible = (
        re.escape(character)
        for ends in _INVISIBLE_RANGES
        for character in map(chr, range(ord(ends[0]), ord(ends[1]) + 1))
        if not "\ud800" <= character <= "\udfff" and not _is_visible(character)
    )
    return re.compile(f"[^{''.join(invisible)}\ud800-\udfff]")


_VISIBLE = _compile_visible()
_BLANKS = re.compile(f"[{BLANKS}]{{2,}}")
# The part of a text searched in one go, during which no other thread runs: about a millisecond.
_SEARCH_CHARACTERS = 65_536


@dataclass(frozen=True, slots=True)
class CheckedText:
    """A text that may be tokenized, and whether characters were cut off."""

    text: str
    cut: bool


def check_text(
    text: str,
    *,
    max_characters: int,
    truncation: Truncation,
    field: str,
    collapses_blanks: bool = False,
) -> CheckedText:
    """Refuse an empty text, and limit the work of tokenizing a huge one.

    Takes time in proportion to the text: call it off the event loop.

    Args:
        text: The text, without a prompt.
        max_characters: Maximum characters to tokenize. A tokenizer truncates only afterwards.
        truncation: The end that may be cut, if any.
        field: Its place in the request, such as `texts[3]`.
        collapses_blanks: Whether the tokenizer takes several blanks for one. Only one of them then
            counts.

    Returns:
        The text, cut to `max_characters`.

    Raises:
        EmptyInputError: The part that would be tokenized has no visible character.
        InputTooLongError: It has too many characters and must not be truncated.
    """
    whole = kept = text
    if len(text) > max_characters and collapses_blanks:
        whole = kept = _collapse(text, max_characters + 1, from_end=truncation is Truncation.START)
    if len(kept) > max_characters:
        match truncation:
            case Truncation.NONE:
                raise InputTooLongError(
                    f"{field} has {len(text)} characters; the limit is {max_characters}",
                    field=field,
                    metadata={
                        "label": "CHARACTERS",
                        "characters": str(len(text)),
                        "maxCharacters": str(max_characters),
                    },
                )
            case Truncation.END:
                kept = kept[:max_characters]
            case Truncation.START:
                kept = kept[-max_characters:]
    if not _has_visible(kept):
        which = "them"
        if kept is not whole:
            end = "last" if truncation is Truncation.START else "first"
            which = f"the {end} {len(kept)}, which are read,"
        raise EmptyInputError(
            f"{field} holds no text: it has {len(text)} characters, none of {which} visible",
            field=field,
            metadata={"characters": str(len(text))},
        )
    return CheckedText(kept, cut=kept is not whole)


def _collapse(text: str, room: int, *, from_end: bool) -> str:
    """Replace blanks in a row by one space, until there are `room` characters or more."""
    parts: list[str] = []
    length = 0
    for offset in range(0, len(text), _SEARCH_CHARACTERS):
        if from_end:
            part = text[max(0, len(text) - offset - _SEARCH_CHARACTERS) : len(text) - offset]
        else:
            part = text[offset : offset + _SEARCH_CHARACTERS]
        part = _BLANKS.sub(" ", part)
        # Blanks at both sides of a seam are in a row as well.
        if parts and from_end and parts[-1][:1] in BLANKS:
            part = part.rstrip(BLANKS)
        elif parts and parts[-1][-1:] in BLANKS:
            part = part.lstrip(BLANKS)
        if not part:
            continue
        parts.append(part)
        length += len(part)
        if length >= room:
            break
    return "".join(parts[::-1] if from_end else parts)


def _has_visible(text: str) -> bool:
    if text[:1].isalnum():
        return True
    return any(
        _VISIBLE.search(text, start, start + _SEARCH_CHARACTERS)
        for start in range(0, len(text), _SEARCH_CHARACTERS)
    )


def too_many_tokens(error: TokenLimitError, *, field: str) -> InputTooLongError:
    """Make the error for an input with too many tokens that must not be truncated."""
    return InputTooLongError(
        f"{field} has {error.token_count} tokens; the limit is {error.max_tokens}",
        field=field,
        metadata={
            "label": "TOKENS",
            "tokens": str(error.token_count),
            "maxTokens": str(error.max_tokens),
        },
    )
