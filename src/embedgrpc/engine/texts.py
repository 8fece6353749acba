"""What a text must be before it is worth tokenizing."""

import unicodedata
from dataclasses import dataclass

from embedgrpc.engine.errors import EmptyInputError, InputTooLongError
from embedgrpc.models.truncation import TokenLimitError, Truncation


@dataclass(frozen=True, slots=True)
class CheckedText:
    """A text that may be tokenized, and whether characters were cut from it."""

    text: str
    cut: bool


def check_text(
    text: str, *, max_characters: int, truncation: Truncation, field: str
) -> CheckedText:
    """Refuses a text that holds nothing, and bounds the work of tokenizing one that is huge.

    Args:
        text: The text, without a prompt.
        max_characters: More are not tokenized: a tokenizer works before it truncates.
        truncation: Which end may be cut, if any.
        field: Its place in the request, such as `texts[3]`.

    Returns:
        The text, cut to `max_characters`.

    Raises:
        EmptyInputError: It has no visible character.
        InputTooLongError: It has too many characters and may not be cut.
    """
    if not _has_visible(text):
        raise EmptyInputError(
            f"{field} holds no text: it has {len(text)} characters, none of them visible",
            field=field,
            metadata={"label": "empty_text", "characters": str(len(text))},
        )
    if len(text) <= max_characters:
        return CheckedText(text, cut=False)
    match truncation:
        case Truncation.NONE:
            raise InputTooLongError(
                f"{field} has {len(text)} characters; the limit is {max_characters}",
                field=field,
                metadata={
                    "label": "characters",
                    "characters": str(len(text)),
                    "maxCharacters": str(max_characters),
                },
            )
        case Truncation.END:
            return CheckedText(text[:max_characters], cut=True)
        case Truncation.START:
            return CheckedText(text[-max_characters:], cut=True)


def _has_visible(text: str) -> bool:
    """Tells whether any character can be seen, in time that nobody can abuse."""
    if text[:1].isalnum():
        return True
    # Megabytes of control characters would hold up the event loop for seconds if each of them
    # was looked up; there are few different ones.
    return any(map(_is_visible, text[:64])) or any(map(_is_visible, set(text[64:])))


def _is_visible(character: str) -> bool:
    # Z: separators. C: control, format, surrogate, private use, unassigned; of these the
    # last two may well be drawn.
    category = unicodedata.category(character)
    return category[0] not in "ZC" or category in ("Co", "Cn")


def too_many_tokens(error: TokenLimitError, *, field: str) -> InputTooLongError:
    """Tells the caller that an input has too many tokens and may not be cut."""
    return InputTooLongError(
        f"{field} has {error.token_count} tokens; the limit is {error.max_tokens}",
        field=field,
        metadata={
            "label": "tokens",
            "tokens": str(error.token_count),
            "maxTokens": str(error.max_tokens),
        },
    )
