"""Limits how many fields a message has before it is parsed.

Parsing holds the interpreter lock, on any thread. A byte of a text costs a fraction of a
nanosecond, but a field some ten: four megabytes of empty texts take tens of milliseconds, in which
no other call is served. So the fields of a large message are counted first, up to the limit.

Source: protobuf encoding specification.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from embedgrpc.engine.errors import InvalidRequestError

# The fields of a message up to this size are parsed within two milliseconds.
SMALL_BYTES = 256 * 1024
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES_MAX = 10
_MORE = 0x80
# The bytes of a packed field that count as one field.
_PACKED_BYTES = 64
_TEXTS = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})


class _TooManyError(Exception):
    """The message has more fields than the limit."""


class _MalformedError(Exception):
    """The bytes are no protobuf message."""


def bound_fields(parse: Callable[[bytes], Any], max_fields: int) -> Callable[[bytes], Any]:
    """Return a parser that raises an InvalidRequestError for messages with too many fields.

    `parse` is the `FromString` of a message class; any other parser is returned as it is.
    """
    descriptor = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)
    if descriptor is None:
        return parse

    def bounded(data: bytes) -> Any:
        if has_more_fields(data, descriptor, max_fields):
            raise InvalidRequestError(
                f"the message has more than {max_fields} fields: send fewer inputs",
                metadata={"label": "TOO_MANY_FIELDS", "maxFields": str(max_fields)},
            )
        return parse(data)

    return bounded


def has_more_fields(data: bytes, descriptor: Any, limit: int) -> bool:
    """Return whether a large message has more fields than a limit.

    Counting takes longer than parsing, and skips packed numbers. So 64 bytes of these count as a
    field. A malformed message is left to the parser, which refuses it.

    Args:
        data: The message in wire form.
        descriptor: The protobuf descriptor of its class.
        limit: The most fields, those of nested messages included.
    """
    if len(data) <= SMALL_BYTES:
        return False
    try:
        _count(data, 0, len(data), descriptor, limit)
    except (IndexError, _MalformedError):
        return False
    except _TooManyError:
        return True
    return False


def _count(data: bytes, start: int, end: int, descriptor: Any, left: int) -> int:
    """Count the fields of a part of a message; return how many are left to the limit."""
    fields = descriptor.fields_by_number
    position = start
    while position < end:
        left -= 1
        if left < 0:
            raise _TooManyError
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _DELIMITED:
            size, position = _read_varint(data, position)
            left = _count_inside(data, position, position + size, fields.get(key >> 3), left)
            position += size
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        else:
            # The start and end of a group have no value: the fields between them count as usual.
            position += _FIXED_BYTES.get(kind, 0)
    return left


def _count_inside(
    data: bytes, start: int, end: int, field: FieldDescriptor | None, left: int
) -> int:
    # The parser keeps an unknown field as it is.
    if field is None or field.type in _TEXTS:
        return left
    if field.message_type is not None:
        return _count(data, start, min(end, len(data)), field.message_type, left)
    fields = (end - start) // _PACKED_BYTES
    if fields > left:
        raise _TooManyError
    return left - fields


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number, and the position after it."""
    byte = data[position]
    if byte < _MORE:
        return byte, position + 1
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < _MORE:
            return value, position + count + 1
    raise _MalformedError
