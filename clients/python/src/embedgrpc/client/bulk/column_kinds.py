"""The types of columns in files of lines, which state none.

A kind is "bool", "int64", "float64", "string", or "json" for values of several types, lists and
objects: those are kept as JSON text where the output has types.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

INT64_MAX: Final = 2**63 - 1
_NUMBERS: Final = {"int64", "float64"}


def kind_of(value: Any) -> str:
    """Return the kind of one value; "" for null."""
    match value:
        case None:
            return ""
        case bool():
            return "bool"
        case int() if abs(value) <= INT64_MAX:
            return "int64"
        case float():
            return "float64"
        case str():
            return "string"
        case _:
            return "json"


def common_kind(kinds: Iterable[str]) -> str:
    """Return the kind of a column whose values have these kinds."""
    found = {kind for kind in kinds if kind}
    if len(found) > 1:
        return "float64" if found == _NUMBERS else "json"
    return found.pop() if found else "string"


def in_kind(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """Return the values of a column as its kind has them."""
    if kind != "json":
        return values
    return [None if value is None else json.dumps(value) for value in values]
