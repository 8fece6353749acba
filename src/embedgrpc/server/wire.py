"""Embeddings in protobuf's wire form, written without touching single numbers in Python.

Filling a `repeated float` number by number costs tens of microseconds a vector. A packed
`repeated float` is, on the wire, its tag, its length and the little-endian numbers: what numpy
already holds. Messages are put together from such pieces and parsed once.

Source: protobuf encoding specification; fields of `embedgrpc.v1.Embedding` and `DenseVector`.
"""

import struct

from embedgrpc.engine.embedding import Embeddings
from embedgrpc.engine.vectors import EncodedRows, Encoding
from embedgrpc.v1 import embedding_service_pb2

_ENCODINGS = {
    Encoding.FLOAT32: embedding_service_pb2.VECTOR_ENCODING_FLOAT32,
    Encoding.FLOAT16: embedding_service_pb2.VECTOR_ENCODING_FLOAT16,
    Encoding.BFLOAT16: embedding_service_pb2.VECTOR_ENCODING_BFLOAT16,
    Encoding.INT8: embedding_service_pb2.VECTOR_ENCODING_INT8,
    Encoding.UBINARY: embedding_service_pb2.VECTOR_ENCODING_UBINARY,
}
_LENGTH_DELIMITED = 2
_VARINT = 0
_FIXED32 = 5


def varint(value: int) -> bytes:
    """Writes a number that is not negative, seven bits a byte, the lowest first."""
    out = bytearray()
    while value >> 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(field: int, wire_type: int) -> bytes:
    """Writes the key of a field."""
    return varint(field << 3 | wire_type)


def delimited(field: int, payload: bytes) -> bytes:
    """Writes a field whose value is bytes: a string, a message or packed numbers."""
    return tag(field, _LENGTH_DELIMITED) + varint(len(payload)) + payload


def embedding_wires(embeddings: Embeddings, encoded: EncodedRows) -> list[bytes]:
    """Writes one `Embedding` message per text.

    Args:
        embeddings: Token counts and truncated flags.
        encoded: Its vectors, encoded.

    Returns:
        The messages, serialised.
    """
    values_field = 1 if encoded.encoding is Encoding.FLOAT32 else 2
    row_bytes = encoded.data.shape[1] * encoded.data.itemsize
    data = encoded.data.tobytes()
    head = tag(values_field, _LENGTH_DELIMITED) + varint(row_bytes)
    tail = tag(3, _VARINT) + varint(_ENCODINGS[encoded.encoding])
    tail += tag(4, _VARINT) + varint(encoded.dimensions)
    dense_bytes = len(head) + row_bytes + len(tail)
    tails = [tail] * len(encoded.data)
    if encoded.scales is not None:
        # A scale of 0 is not written: it is what a missing field means.
        scale_tag = tag(5, _FIXED32)
        tails = [
            tail + scale_tag + struct.pack("<f", scale) if scale else tail
            for scale in encoded.scales.tolist()
        ]
    heads = {
        extra: tag(1, _LENGTH_DELIMITED) + varint(dense_bytes + extra) + head for extra in (0, 5)
    }
    wires = []
    counts = zip(embeddings.token_counts.tolist(), embeddings.truncated.tolist(), strict=True)
    for row, (token_count, truncated) in enumerate(counts):
        own_tail = tails[row]
        wires.append(
            heads[len(own_tail) - len(tail)]
            + data[row * row_bytes : (row + 1) * row_bytes]
            + own_tail
            + (tag(4, _VARINT) + varint(token_count) if token_count else b"")
            + (b"\x28\x01" if truncated else b"")
        )
    return wires


def embedding_size(dimensions: int, encoding: Encoding) -> int:
    """Bounds the bytes of one `Embedding` with its own key, before it is made."""
    bits = {
        Encoding.FLOAT32: 32,
        Encoding.FLOAT16: 16,
        Encoding.BFLOAT16: 16,
        Encoding.INT8: 8,
        Encoding.UBINARY: 1,
    }[encoding]
    # Five varints of lengths and counts, their keys, encoding, scale and flag.
    return (dimensions * bits + 7) // 8 + 48
