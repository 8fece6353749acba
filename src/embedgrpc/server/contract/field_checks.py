"""The rules of the contract: each names the field, the size of its value, and the limit."""

from collections.abc import Collection
from typing import Any

from embedgrpc.engine.errors import InvalidRequestError

_ID_CHARACTERS_MAX = 256


def check_count(count: int, *, limit: int, field: str) -> None:
    """Refuses an empty list and one that is too long."""
    if count == 0:
        raise InvalidRequestError(
            f"{field} is empty; at least 1 is required",
            field=field,
            metadata={"label": "empty_request"},
        )
    if count > limit:
        raise InvalidRequestError(
            f"{field} has {count} entries; the limit is {limit}",
            field=field,
            metadata={"label": "batch_too_large", "count": str(count), "limit": str(limit)},
        )


def check_not_negative(value: int, *, field: str) -> None:
    """Refuses a negative number."""
    if value < 0:
        raise InvalidRequestError(f"{field} is {value}; it must not be negative", field=field)


def check_enum(enum: Any, value: int, *, field: str) -> None:
    """Refuses a number that the enum does not have; proto3 keeps such numbers."""
    if value not in enum.values():
        raise InvalidRequestError(
            f"{field} is {value}, which {enum.DESCRIPTOR.name} does not have",
            field=field,
            metadata={"label": "unknown_enum", "value": str(value)},
        )


def check_id(identifier: str, in_flight: Collection[str], *, field: str) -> None:
    """Refuses an id that is too long, or that waits for its answer already.

    Raises:
        InvalidRequestError: It does.
    """
    if len(identifier) > _ID_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"{field} has {len(identifier)} characters; the limit is {_ID_CHARACTERS_MAX}",
            field=field,
        )
    if identifier in in_flight:
        raise InvalidRequestError(
            f"{field} is the id of an input that is not answered yet",
            field=field,
            metadata={"label": "duplicate_id"},
        )
