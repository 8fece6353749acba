"""Checks texts before they are sent."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

# Texts, or pairs of texts.
ClassifyInputs = Iterable[str] | Iterable[tuple[str, str]]
# The chunks of one text: where they start and end, in characters.
Spans: TypeAlias = Sequence[tuple[int, int]]


_NUMBER_MAX = 2**31 - 1


def valid_texts(field: str, texts: Iterable[str]) -> list[str]:
    """Return a batch of texts as a list.

    Args:
        field: The name of the argument, for errors.
        texts: The texts. A str is rejected: it would be a batch of its characters.

    Raises:
        TypeError: `texts` is a str, or one of them is not.
        ValueError: A text has a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError(f"{field} is one str; give a list of texts")
    return [valid_text(f"{field}[{index}]", text) for index, text in enumerate(texts)]


def valid_inputs(field: str, inputs: ClassifyInputs) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a batch of texts or of pairs as lists, one of which is empty.

    Args:
        field: The name of the argument, for errors.
        inputs: All texts or all pairs.

    Raises:
        TypeError: `inputs` is a str, or an input is neither, or both forms are mixed.
        ValueError: A text has a lone surrogate.
    """
    if isinstance(inputs, str):
        raise TypeError(f"{field} is one str; give a list of texts or pairs")
    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    for index, one in enumerate(inputs):
        name = f"{field}[{index}]"
        match one:
            case str(text):
                texts.append(valid_text(name, text))
            case (first, second):
                pairs.append((valid_text(f"{name}[0]", first), valid_text(f"{name}[1]", second)))
            case _:
                raise TypeError(f"{name} is neither a text nor a pair of texts")
        if texts and pairs:
            raise TypeError(f"{name} is of another form than those before: give texts or pairs")
    return texts, pairs


def valid_text(field: str, text: str) -> str:
    """Return a text.

    Args:
        field: The name of the argument, for errors.
        text: The text.

    Raises:
        TypeError: It is not a str.
        ValueError: It has a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{field} is not a str but of type {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Without its cause, which holds the text.
            raise ValueError(f"{field} has a lone surrogate at character {error.start}") from None
    return text


def valid_spans(field: str, spans: Any) -> Spans:
    """Return the spans of a text as tuples.

    Args:
        field: The name of the input, for errors.
        spans: Where each starts and ends; an array [spans, 2] will do.

    Raises:
        TypeError: They are no pairs of whole numbers.
        ValueError: A number is too large for the contract.
    """
    try:
        pairs = [(operator.index(start), operator.index(end)) for start, end in spans]
    except (TypeError, ValueError):
        raise TypeError(f"the spans of {field} are not all pairs of whole numbers") from None
    for index, pair in enumerate(pairs):
        if not all(-_NUMBER_MAX <= number <= _NUMBER_MAX for number in pair):
            raise ValueError(
                f"span {index} of {field} has a number beyond {_NUMBER_MAX}, the limit"
            )
    return pairs


def text_problem(value: object) -> str:
    """Return why a value of a column cannot be sent as a text; "" if it can."""
    # NaN is what pandas has for null.
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 -- NaN
        return "EMPTY_INPUT: the text is null"
    if not isinstance(value, str):
        return f"INVALID_REQUEST: the text is of type {type(value).__name__}"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"INVALID_REQUEST: the text has a lone surrogate at character {error.start}"
    return ""
