"""Checks how much longer a tokenizer may make a text, before it runs.

Each step of a normaliser may replace one character by several: forty steps that double a text turn
one character into a terabyte.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError

# Real models make a text at most 700 times longer by this calculation.
_GROWTH_MAX = 4096
_STEPS_MAX = 64
# The time for a word is quadratic in its length. Real models have a limit of 100 or 200.
_WORD_CHARACTERS_MAX = 10_000
_SHOWN_MAX = 10**18
# How many characters one character becomes at most. Repeating one of these steps changes nothing,
# so each counts once.
_ONCE = {
    "NFKC": 18,
    "NFKD": 18,
    "NFC": 3,
    "NFD": 4,
    "BertNormalizer": 4,
    "Lowercase": 3,
    "ByteLevel": 4,
}
# The size of the first part of a table of replacements.
_TABLE_SIZE = struct.Struct("<I")


def check_growth(path: Path, content: bytes) -> None:
    """Check that a tokenizer, the content of `tokenizer.json`, does not make texts far longer.

    Raises:
        ModelError: It may. The tokenizers library reports other faults of the file.
    """
    try:
        tokenizer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: it is not JSON") from error
    if not isinstance(tokenizer, dict):
        raise ModelError(f"{path} must contain a JSON object")
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
        # A number of more than 308 digits does not fit a float.
        shown = f"{length:.3g}" if length < _SHOWN_MAX else f"above {_SHOWN_MAX:.0e}"
        raise ModelError(
            f"{path}: model.max_input_chars_per_word {shown} is more than the limit of "
            f"{_WORD_CHARACTERS_MAX}"
        )


def _steps(normalizer: object) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normaliser, also inside of sequences."""
    # The JSON reader limits the depth.
    if not isinstance(normalizer, dict):
        return
    inner = normalizer.get("normalizers")
    if isinstance(inner, list):
        for one in inner:
            yield from _steps(one)
    else:
        yield normalizer


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many characters a step makes of one character at most."""
    # The library recognises a step without a type by its keys.
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
    # An empty match is replaced between any two characters.
    return 1 + length


def _longest_replacement(table: str) -> int:
    """Return the length of the longest replacement in a SentencePiece table, in characters."""
    try:
        content = base64.b64decode(table, validate=True)
        (size,) = _TABLE_SIZE.unpack_from(content)
    except (ValueError, struct.error):
        return 1  # The library refuses this table.
    replacements = content[_TABLE_SIZE.size + size :].split(b"\0")
    return max(len(one.decode(errors="replace")) for one in replacements)
