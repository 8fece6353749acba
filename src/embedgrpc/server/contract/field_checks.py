"""Checks single fields of requests. Errors name the field, its value or size, and the limit."""

from collections.abc import Collection
from functools import cache
from typing import Any

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.limits import ID_CHARACTERS_MAX
from embedgrpc.server.contract.names import list_names


def check_count(count: int, *, limit: int, field: str) -> None:
    """Check that a list is neither empty nor too long."""
    if count == 0:
        raise InvalidRequestError(
            f"{field} is empty; at least 1 is required",
            field=field,
            metadata={"label": "NO_INPUTS"},
        )
    if count > limit:
        raise InvalidRequestError(
            f"{field} has {count} entries; the limit is {limit}",
            field=field,
            metadata={"label": "TOO_MANY_INPUTS", "count": str(count), "limit": str(limit)},
        )


def check_not_negative(value: int, *, field: str) -> None:
    """Check that a number is 0 or more."""
    if value < 0:
        raise InvalidRequestError(f"{field} is {value}; it must not be negative", field=field)


def check_enum(enum: Any, value: int, *, field: str) -> None:
    """Check that an enum has a number; proto3 keeps unknown numbers."""
    if value not in _numbers_of(enum):
        known = list_names([f"{name} ({number})" for name, number in enum.items()])
        raise InvalidRequestError(
            f"{field} is {value}; {enum.DESCRIPTOR.name} has {known}",
            field=field,
            metadata={"label": "UNKNOWN_ENUM_VALUE", "value": str(value)},
        )


@cache
def _numbers_of(enum: Any) -> frozenset[int]:
    return frozenset(enum.values())


def check_id(identifier: str, in_flight: Collection[str], *, field: str) -> None:
    """Check that an id is not too long, and not in flight already."""
    if len(identifier) > ID_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"{field} has {len(identifier)} characters; the limit is {ID_CHARACTERS_MAX}",
            field=field,
        )
    if identifier in in_flight:
        raise InvalidRequestError(
            f"{field} is the id of an input that is not answered yet",
            field=field,
            metadata={"label": "DUPLICATE_ID"},
        )


def out_of_order(what: str) -> InvalidRequestError:
    """Return the error of a message that a stream must not have at this point."""
    return InvalidRequestError(what, field="step", metadata={"label": "OUT_OF_ORDER"})
