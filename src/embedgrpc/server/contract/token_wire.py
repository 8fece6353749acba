"""Writes the places of tokens into messages of the contract."""

from typing import Any

from embedgrpc.models.tokenizers.tokenized_text import TokenPlaces

# One call into protobuf with more numbers would hold up the event loop through the GIL.
NUMBERS_AT_ONCE = 8192


def fill_places(message: Any, places: TokenPlaces) -> None:
    """Fill the lists that `TokenizedText` and `TokenVectors` of the contract share."""
    tokens = places.tokens
    for numbers, field in (
        (tokens.ids, message.ids),
        (tokens.starts, message.character_starts),
        (tokens.ends, message.character_ends),
        (places.byte_starts, message.byte_starts),
        (places.byte_ends, message.byte_ends),
        (tokens.special, message.special),
        (tokens.of_prompt, message.of_prompt),
    ):
        for start in range(0, len(numbers), NUMBERS_AT_ONCE):
            field.extend(numbers[start : start + NUMBERS_AT_ONCE].tolist())
