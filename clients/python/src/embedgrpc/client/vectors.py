"""Decode the vectors of the contract into numpy arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.errors import BadResponseError
from embedgrpc.v1 import embedding_service_pb2 as pb

Vectors = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

_DATA_TYPES: dict[int, np.dtype[Any]] = {
    pb.VECTOR_ENCODING_FLOAT16: np.dtype("<f2"),
    pb.VECTOR_ENCODING_BFLOAT16: np.dtype("<u2"),
    pb.VECTOR_ENCODING_INT8: np.dtype(np.int8),
    pb.VECTOR_ENCODING_UBINARY: np.dtype(np.uint8),
}
_BFLOAT16_SHIFT = 16


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """The non-zero weights of the vocabulary, by ascending id.

    Attributes:
        indices: int64 [terms]; vocabulary ids.
        values: float32 [terms]; the weight of each id.
        dimensions: The size of the vocabulary.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    dimensions: int

    def __repr__(self) -> str:
        return f"SparseVector({len(self.indices)} of {self.dimensions} terms)"


@dataclass(frozen=True, slots=True, eq=False)
class MultiVector:
    """One vector per token.

    Attributes:
        values: [rows, dimensions]: float32, or the raw int8; for "ubinary" uint8
            [rows, ceil(dimensions / 8)].
        scales: float32 [rows]; multiply "int8" rows by it. None in every other encoding.
        dimensions: The length of a row, in numbers.
    """

    values: Vectors
    scales: NDArray[np.float32] | None
    dimensions: int

    def __repr__(self) -> str:
        return f"MultiVector({show_shape(self.values)})"


def show_shape(array: NDArray[Any]) -> str:
    """Return the shape and type of an array for people, such as "3 x 384 float32"."""
    return f"{' x '.join(map(str, array.shape))} {array.dtype}"


def decode_rows(message: pb.DenseVector | pb.MultiVector, row_count: int) -> Vectors:
    """Decode the numbers of a dense vector or a multi-vector.

    Args:
        message: The vector.
        row_count: The number of rows; 1 for a dense vector.

    Returns:
        [row_count, dimensions]: float32 for the three floating-point encodings, int8 for INT8;
        uint8 [row_count, ceil(dimensions / 8)] for UBINARY.

    Raises:
        BadResponseError: The size of the data does not match the message, or the encoding is
            unknown.
    """
    dimensions = message.dimensions
    if message.encoding == pb.VECTOR_ENCODING_FLOAT32:
        return decode_floats(message, row_count * dimensions).reshape(row_count, dimensions)
    dtype = _DATA_TYPES.get(message.encoding)
    if dtype is None:
        raise BadResponseError(f"a vector has the unknown encoding {message.encoding}")
    is_bits = message.encoding == pb.VECTOR_ENCODING_UBINARY
    width = (dimensions + 7) // 8 if is_bits else dimensions
    byte_count = row_count * width * dtype.itemsize
    if len(message.data) != byte_count:
        raise BadResponseError(f"a vector has {len(message.data)} bytes where {byte_count} are due")
    rows: NDArray[Any] = np.frombuffer(message.data, dtype).reshape(row_count, width)
    if message.encoding == pb.VECTOR_ENCODING_FLOAT16:
        return rows.astype(np.float32)
    if message.encoding == pb.VECTOR_ENCODING_BFLOAT16:
        # A bfloat16 is the upper half of a float32.
        return (rows.astype(np.uint32) << _BFLOAT16_SHIFT).view(np.float32)
    return rows.copy()


def decode_floats(message: pb.DenseVector | pb.MultiVector, count: int) -> NDArray[np.float32]:
    """Decode `values` from the wire format, several times as fast as number by number.

    Protobuf writes fields in ascending order, and `values` is the first of its message.

    Args:
        message: A vector with `values`.
        count: The number of values that is due.

    Returns:
        float32 [count], writable.

    Raises:
        BadResponseError: The number of values is another.
    """
    _require_count("values", len(message.values), count)
    wire = message.SerializeToString()
    return np.frombuffer(wire, "<f4", count, _header_bytes(count)).astype(np.float32)


def decode_sparse(message: pb.SparseVector) -> SparseVector:
    """Decode a sparse vector.

    Raises:
        BadResponseError: The numbers of weights and indices differ.
    """
    count = len(message.indices)
    _require_count("values", len(message.values), count)
    wire = message.SerializeToString()
    header_bytes = _header_bytes(count)
    values_offset = 2 * header_bytes + 4 * count
    return SparseVector(
        indices=np.frombuffer(wire, "<u4", count, header_bytes).astype(np.int64),
        values=np.frombuffer(wire, "<f4", count, values_offset).astype(np.float32),
        dimensions=message.dimensions,
    )


def decode_multi_vector(message: pb.MultiVector) -> MultiVector:
    """Decode a multi-vector.

    Raises:
        BadResponseError: The sizes of its fields do not match.
    """
    scales = None
    if message.encoding == pb.VECTOR_ENCODING_INT8:
        _require_count("scales", len(message.scales), message.row_count)
        scales = np.array(message.scales, np.float32)
    return MultiVector(decode_rows(message, message.row_count), scales, message.dimensions)


def _header_bytes(count: int) -> int:
    """Return the bytes of tag and length before `count` packed numbers of 4 bytes each."""
    if count == 0:
        return 0  # protobuf does not write an empty field
    return 1 + (7 + (4 * count).bit_length() - 1) // 7


def _require_count(field: str, found: int, due: int) -> None:
    if found != due:
        raise BadResponseError(f"a vector has {found} {field} where {due} are due")
