"""Checks how much longer a tokenizer may make a text, before the tokenizer is run.

Each step of a normaliser may replace a character by several, and forty steps that double a text
make a terabyte of one character.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError

# Those of real models make a text at most 700 times longer by this reckoning.
_GROWTH_MAX = 4096
_STEPS_MAX = 64
# A word is looked up from each of its characters on. Real models say 100 or 200.
_WORD_CHARACTERS_MAX = 10_000
_SHOWN_MAX = 10**18
# What one character becomes at most. A form that a text has already adds nothing, so that these
# count once however often they stand there.
_ONCE = {
    "NFKC": 18,
    "NFKD": 18,
    "NFC": 3,
    "NFD": 4,
    "BertNormalizer": 4,
    "Lowercase": 3,
    "ByteLevel": 4,
}
# Bytes that say how long the first part of a table of replacements is.
_TABLE_SIZE = struct.Struct("<I")


def check_growth(path: Path, content: bytes) -> None:
    """Checks that a tokenizer does not make far longer texts of texts.

    Args:
        path: `tokenizer.json`, for messages.
        content: Its content.

    Raises:
        ModelError: It may. What else is wrong with the file is told by the library.
    """
    try:
        tokenizer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: it is no JSON") from error
    if not isinstance(tokenizer, dict):
        raise ModelError(f"{path} must hold a JSON object")
    steps = list(_steps(tokenizer.get("normalizer")))
    if len(steps) > _STEPS_MAX:
        raise ModelError(
            f"{path}: normalizer has {len(steps)} steps, more than the limit of {_STEPS_MAX}"
        )
    growth = max((_ONCE.get(str(step.get("type")), 1) for step in steps), default=1) * math.prod(
        max(_growth(step), 1.0) for step in steps
    )
    if growth > _GROWTH_MAX:
        raise ModelError(
            f"{path}: normalizer may make a text {growth:.3g} times longer, more than the limit "
            f"of {_GROWTH_MAX}"
        )
    model = tokenizer.get("model")
    length = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(length, int) and length > _WORD_CHARACTERS_MAX:
        # A number of more than 308 digits is no float.
        shown = f"{length:.3g}" if length < _SHOWN_MAX else f"above {_SHOWN_MAX:.0e}"
        raise ModelError(
            f"{path}: model.max_input_chars_per_word {shown} is more than the limit of "
            f"{_WORD_CHARACTERS_MAX}"
        )


def _steps(normalizer: object) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, in sequences or alone."""
    # Nested no deeper than JSON is read.
    if not isinstance(normalizer, dict):
        return
    inner = normalizer.get("normalizers")
    if isinstance(inner, list):
        for one in inner:
            yield from _steps(one)
    else:
        yield normalizer


def _growth(step: Mapping[str, Any]) -> float:
    """How many characters one character becomes at most, each time that a step is taken."""
    # The library knows a step without a type by its keys.
    table, prepended = step.get("precompiled_charsmap"), step.get("prepend")
    if isinstance(table, str):
        return _longest_replacement(table)
    if isinstance(prepended, str):
        return 1 + len(prepended)
    if "pattern" not in step:
        return 1
    pattern, content = step["pattern"], step.get("content")
    length = len(content) if isinstance(content, str) else 0
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str) and pattern["String"]:
        return length / len(pattern["String"])
    # A pattern that no character fits is found between any two.
    return 1 + length


def _longest_replacement(table: str) -> int:
    """The characters of the longest replacement of a table, as SentencePiece writes it."""
    try:
        content = base64.b64decode(table, validate=True)
        (size,) = _TABLE_SIZE.unpack_from(content)
    except (ValueError, struct.error):
        return 1  # the library refuses it
    replacements = content[_TABLE_SIZE.size + size :].split(b"\0")
    return max(len(one.decode(errors="replace")) for one in replacements)
