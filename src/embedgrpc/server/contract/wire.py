"""Writes embeddings in protobuf's wire form without touching single numbers in Python.

Filling a `repeated float` number by number costs tens of microseconds per vector. On the wire, a
packed `repeated float` is its tag, its length and the little-endian numbers that numpy holds.

Source: protobuf encoding specification; fields of `embedgrpc.v1.Embedding` and `DenseVector`.
"""

import struct
from functools import lru_cache

from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.results.vectors import EncodedRows, Encoding, encode
from embedgrpc.engine.tasks.chunking import ChunkVectors
from embedgrpc.engine.tasks.embeddings import Embeddings
from embedgrpc.engine.tasks.token_places import TokenVectors
from embedgrpc.server.contract.token_wire import fill_places
from embedgrpc.v1 import embedding_service_pb2

_ENCODINGS = {
    Encoding.FLOAT32: embedding_service_pb2.VECTOR_ENCODING_FLOAT32,
    Encoding.FLOAT16: embedding_service_pb2.VECTOR_ENCODING_FLOAT16,
    Encoding.BFLOAT16: embedding_service_pb2.VECTOR_ENCODING_BFLOAT16,
    Encoding.INT8: embedding_service_pb2.VECTOR_ENCODING_INT8,
    Encoding.UBINARY: embedding_service_pb2.VECTOR_ENCODING_UBINARY,
}
_TOKEN_VECTORS_FIELD = 7
_CHUNKS_FIELD = 8
# A float32.
_SCALE_BYTES = 4
_TRUNCATED = b"\x28\x01"
DELIMITED = 2
VARINT = 0
FIXED32 = 5
# Lengths and counts repeat; so do the frames of a model's vectors.
_KNOWN_VARINTS = 4096
_KNOWN_FRAMES = 256


@lru_cache(_KNOWN_VARINTS)
def varint(value: int) -> bytes:
    """Encode a number of 0 or more, seven bits per byte, the lowest first."""
    out = bytearray()
    while value >> 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(_KNOWN_VARINTS)
def tag(field: int, wire_type: int) -> bytes:
    """Encode the key of a field."""
    return varint(field << 3 | wire_type)


def delimited(field: int, payload: bytes) -> bytes:
    """Encode a field whose value is bytes: a string, a message or packed numbers."""
    return tag(field, DELIMITED) + varint(len(payload)) + payload


def embedding_wires(
    embeddings: Embeddings, *, encoding: Encoding, sparse_dimensions: int
) -> list[bytes]:
    """Encode one `Embedding` message per text.

    Args:
        embeddings: The embeddings of some texts.
        encoding: The format of dense and multi-vector numbers.
        sparse_dimensions: The size of the vocabulary.
    """
    texts = len(embeddings.token_counts)
    nothing = [b""] * texts
    dense = sparse = multi = nothing
    if embeddings.vectors is not None:
        dense = _dense_wires(encode(embeddings.vectors, encoding))
    if embeddings.sparse is not None:
        sparse = [_sparse_wire(one, sparse_dimensions) for one in embeddings.sparse]
    if embeddings.multi_vectors is not None:
        multi = [_multi_vector_wire(encode(one, encoding)) for one in embeddings.multi_vectors]
    tokens = nothing
    if embeddings.token_vectors is not None:
        tokens = [_token_vectors_wire(one, encoding) for one in embeddings.token_vectors]
    chunks = nothing
    if embeddings.chunks is not None:
        chunks = [_chunks_wire(one, encoding) for one in embeddings.chunks]
    ends = [
        (tag(4, VARINT) + varint(token_count) if token_count else b"")
        + (_TRUNCATED if truncated else b"")
        for token_count, truncated in zip(
            embeddings.token_counts, embeddings.truncated, strict=True
        )
    ]
    return [
        b"".join(parts) for parts in zip(dense, sparse, multi, ends, tokens, chunks, strict=True)
    ]


def _dense_wires(encoded: EncodedRows) -> list[bytes]:
    """Encode the field `dense` of each text."""
    row_bytes = encoded.data.shape[1] * encoded.data.itemsize
    data = encoded.data.tobytes()
    rows = [data[start : start + row_bytes] for start in range(0, len(data), row_bytes)]
    shape = (encoded.encoding, encoded.dimensions, row_bytes)
    head, tail = _dense_frame(*shape)
    if encoded.scales is None:
        return [head + row + tail for row in rows]
    scale_tag = tag(5, FIXED32)
    scaled_head, _ = _dense_frame(*shape, extra=len(scale_tag) + _SCALE_BYTES)
    return [
        # A scale of 0 is left out: a missing field means 0.
        scaled_head + row + tail + scale_tag + struct.pack("<f", scale)
        if scale
        else head + row + tail
        for row, scale in zip(rows, encoded.scales.tolist(), strict=True)
    ]


@lru_cache(_KNOWN_FRAMES)
def _dense_frame(
    encoding: Encoding, dimensions: int, row_bytes: int, *, extra: int = 0
) -> tuple[bytes, bytes]:
    """Return what stands before and after the numbers in the field `dense`.

    Args:
        encoding: The format of the numbers.
        dimensions: Numbers per vector.
        row_bytes: The bytes of the numbers.
        extra: The bytes that follow in the same field.
    """
    head = tag(_values_field(encoding), DELIMITED) + varint(row_bytes)
    tail = _shape(encoding, dimensions)
    size = len(head) + row_bytes + len(tail) + extra
    return tag(1, DELIMITED) + varint(size) + head, tail


def _sparse_wire(vector: SparseVector, dimensions: int) -> bytes:
    """Encode the field `sparse`."""
    return delimited(
        2,
        _packed(1, vector.indices.astype("<u4").tobytes())
        + _packed(2, vector.values.astype("<f4").tobytes())
        + tag(3, VARINT)
        + varint(dimensions),
    )


def _multi_vector_wire(encoded: EncodedRows) -> bytes:
    """Encode the field `multi_vector`; a row of the data is a token."""
    return delimited(3, _rows_wire(encoded))


def _token_vectors_wire(tokens: TokenVectors, encoding: Encoding) -> bytes:
    """Encode the field `token_vectors`."""
    message = embedding_service_pb2.TokenVectors()
    fill_places(message, tokens.places)
    vectors = delimited(1, _rows_wire(encode(tokens.vectors, encoding)))
    return delimited(_TOKEN_VECTORS_FIELD, vectors + message.SerializeToString())


def _chunks_wire(chunks: ChunkVectors, encoding: Encoding) -> bytes:
    """Encode the field `chunks`."""
    found = chunks.chunks
    message = embedding_service_pb2.ChunkVectors(
        character_starts=found.starts.tolist(),
        character_ends=found.ends.tolist(),
        byte_starts=found.byte_starts.tolist(),
        byte_ends=found.byte_ends.tolist(),
        token_counts=(found.last - found.first).tolist(),
    )
    vectors = delimited(1, _rows_wire(encode(chunks.vectors, encoding)))
    return delimited(_CHUNKS_FIELD, vectors + message.SerializeToString())


def _rows_wire(encoded: EncodedRows) -> bytes:
    """Encode a `MultiVector`."""
    rows = len(encoded.data)
    return (
        _packed(_values_field(encoded.encoding), encoded.data.tobytes())
        + _shape(encoded.encoding, encoded.dimensions)
        + (tag(5, VARINT) + varint(rows) if rows else b"")
        + (_packed(6, encoded.scales.tobytes()) if encoded.scales is not None else b"")
    )


def _values_field(encoding: Encoding) -> int:
    return 1 if encoding is Encoding.FLOAT32 else 2


def _shape(encoding: Encoding, dimensions: int) -> bytes:
    return tag(3, VARINT) + varint(_ENCODINGS[encoding]) + tag(4, VARINT) + varint(dimensions)


def _packed(field: int, data: bytes) -> bytes:
    """Encode packed numbers, or bytes; leave an empty field out."""
    return delimited(field, data) if data else b""
