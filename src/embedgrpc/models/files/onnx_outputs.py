"""Reads the outputs of an ONNX graph without the onnx package.

A model's properties depend on them, and every process reads those before it knows a cache. Skipping
over the weights takes 0.4 ms; importing onnx takes 0.5 s and reads the whole file into memory.

Source: onnx.proto and the wire format of protocol buffers.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedgrpc.models.files.model_file import open_file

# Field numbers in onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_OUTPUT = 12
_VALUE_NAME = 1
_VALUE_TYPE = 2
_TYPE_TENSOR = 1
_TENSOR_SHAPE = 2
_SHAPE_DIM = 1
_DIM_VALUE = 1

_VARINT = 0
_LENGTH = 2
# Sizes of the fixed-length types of fields, in bytes.
_FIXED = {1: 8, 5: 4}
_VARINT_BYTES_MAX = 10
# A graph has one field per node, and real graphs have up to 20,000 nodes.
_FIELDS_MAX = 1_000_000

# The length of each axis; None if it is free.
Dims = tuple[int | None, ...]
# The number of a field, and its start and end; or its numeric value and -1.
_Field = tuple[int, int, int]


def read_outputs(path: Path, root: Path) -> Mapping[str, Dims]:
    """Return the shapes of a graph's outputs by name.

    Returns:
        The shapes; empty if the file is not an ONNX graph, which loading it reports.

    Raises:
        ModelError: The file is missing, not a regular file, or outside the folder.
    """
    try:
        with (
            open_file(path, root) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _read_model(content)
    except (OSError, ValueError):
        return {}


def _read_model(content: mmap.mmap) -> Mapping[str, Dims]:
    outputs = {}
    for graph, start, end in _fields(content, 0, len(content)):
        if graph != _MODEL_GRAPH:
            continue
        for number, value_start, value_end in _fields(content, start, end):
            if number == _GRAPH_OUTPUT:
                name, shape = _read_value(content, value_start, value_end)
                outputs[name] = shape
    return outputs


def _read_value(content: mmap.mmap, start: int, end: int) -> tuple[str, Dims]:
    name, shape = "", []
    for number, first, last in _fields(content, start, end):
        if number == _VALUE_NAME:
            name = content[first:last].decode()
        elif number == _VALUE_TYPE:
            for tensor in _within(content, first, last, _TYPE_TENSOR):
                for dims in _within(content, *tensor, _TENSOR_SHAPE):
                    shape = [_read_dim(content, *d) for d in _within(content, *dims, _SHAPE_DIM)]
    return name, tuple(shape)


def _read_dim(content: mmap.mmap, start: int, end: int) -> int | None:
    values = [value for number, value, last in _fields(content, start, end)
              if number == _DIM_VALUE and last < 0]  # fmt: skip
    return values[-1] if values else None


def _within(content: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for number, a, b in _fields(content, start, end) if number == wanted and b >= 0)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message."""
    place = start
    for _ in range(_FIELDS_MAX):
        if place >= end:
            return
        tag, place = _read_varint(content, place, end)
        kind = tag & 7
        if kind == _VARINT:
            value, place = _read_varint(content, place, end)
            yield tag >> 3, value, -1
            continue
        size = _FIXED.get(kind, 0)
        if kind == _LENGTH:
            size, place = _read_varint(content, place, end)
        elif not size:
            raise ValueError("no field of this type")
        if place + size > end:
            raise ValueError("the field leaves its message")
        yield tag >> 3, place, place + size
        place += size
    raise ValueError("the message has too many fields")


def _read_varint(content: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(_VARINT_BYTES_MAX):
        if place + shift >= end:
            break
        byte = content[place + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:  # noqa: PLR2004 - a set highest bit means that another byte follows
            return value, place + shift + 1
    raise ValueError("the number does not end")
