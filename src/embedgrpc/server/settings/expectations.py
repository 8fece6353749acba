"""Says in words which values a setting may have."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number"}


def expected(field: FieldInfo) -> str:
    """Return what a setting must be, such as "a whole number from 0 to 64"."""
    return _describe(field.annotation) + _describe_bounds(field.metadata)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the names that a setting can have; empty if it is no choice between names."""
    return _choices(_without_none(field.annotation))


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 and NoneType in get_args(annotation) else annotation


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return tuple(annotation)
    return ()


def _describe(annotation: Any) -> str:
    annotation = _without_none(annotation)
    if names := _choices(annotation):
        return f"{', '.join(names[:-1])} or {names[-1]}"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    inner = get_args(annotation)
    if get_origin(annotation) in (dict, Mapping):
        return "NAME=NUMBER" if inner[1] is float else "NAME=TEXT"
    if get_origin(annotation) is tuple:
        names = _choices(inner[0])
        return f"one or more of {', '.join(names)}" if names else "a text or a list"
    return "a text"


def _describe_bounds(metadata: Sequence[Any]) -> str:
    limits = {
        name: getattr(one, name)
        for one in metadata
        for name in ("gt", "ge", "le", "max_length")
        if hasattr(one, name)
    }
    match limits:
        case {"gt": above, "le": most}:
            return f" above {above} and at most {most}"
        case {"ge": least, "le": most}:
            return f" from {least} to {most}"
        case {"ge": least}:
            return f" of at least {least}"
        case {"max_length": length}:
            return f" of at most {length} characters"
        case _:
            return ""
