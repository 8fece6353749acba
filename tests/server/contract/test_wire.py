import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.results.vectors import EncodedRows, Encoding, encode
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import Representation, Truncation
from embedgrpc.server.contract.response_sizes import embeddings_size
from embedgrpc.server.contract.wire import delimited, embedding_wires, tag, varint
from embedgrpc.v1 import embedding_service_pb2

# Where the length in bytes of some encoding takes one more byte to write.
LENGTHS = (1, 8, 9, 31, 32, 33, 127, 128, 384, 1016, 1017, 4095, 4096)
TOKEN_COUNTS = (0, 1, 127, 128, 16_384, 2**31 - 1)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 3.4e38, 1e-45, -1.5)


def embeddings_of(
    rows: FloatArray, token_counts: Sequence[int], truncated: Sequence[bool]
) -> Embeddings:
    """Return embeddings as the engine does."""
    return Embeddings(
        vectors=rows,
        sparse=None,
        multi_vectors=None,
        token_counts=token_counts,
        truncated=truncated,
    )


def wires_of(embeddings: Embeddings, encoding: Encoding) -> list[bytes]:
    """Encode embeddings, with a vocabulary of a thousand."""
    return embedding_wires(embeddings, encoding=encoding, sparse_dimensions=1000)


def ordinary(
    rows: FloatArray, encoded: EncodedRows, row: int, *, token_count: int, truncated: bool
) -> bytes:
    """Fill a message number by number and serialise it."""
    dense = embedding_service_pb2.DenseVector(
        encoding=f"VECTOR_ENCODING_{encoded.encoding.name}", dimensions=encoded.dimensions
    )
    if encoded.encoding is Encoding.FLOAT32:
        dense.values.extend(rows[row].tolist())
    else:
        dense.data = encoded.data[row].tobytes()
    if encoded.scales is not None:
        dense.scale = float(encoded.scales[row])
    return embedding_service_pb2.Embedding(
        dense=dense, token_count=token_count, truncated=truncated
    ).SerializeToString(deterministic=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[FloatArray, Encoding, list[int], list[bool]]:
    """Vectors with their token counts and flags, and how they are written."""
    texts = draw(st.integers(1, 4))
    length = draw(st.sampled_from(LENGTHS) | st.integers(1, 600))
    encoding = draw(st.sampled_from(Encoding))
    seed = draw(st.integers(0, 2**32 - 1))
    rows = np.random.default_rng(seed).standard_normal((texts, length)).astype(np.float32)
    for row in range(texts):
        if draw(st.booleans()):
            rows[row] = 0
    if encoding is Encoding.FLOAT32:
        special = draw(st.lists(st.sampled_from(SPECIAL), max_size=length))
        rows[0, : len(special)] = special
    counts = st.sampled_from(TOKEN_COUNTS) | st.integers(0, 2**31 - 1)
    token_counts = draw(st.lists(counts, min_size=texts, max_size=texts))
    truncated = draw(st.lists(st.booleans(), min_size=texts, max_size=texts))
    return rows, encoding, token_counts, truncated


@given(case=cases())
@settings(max_examples=400, deadline=None)
def test_bytes_are_those_of_the_ordinary_way(
    case: tuple[FloatArray, Encoding, list[int], list[bool]],
) -> None:
    """Each message is byte by byte what protobuf writes."""
    rows, encoding, token_counts, truncated = case
    encoded = encode(rows, encoding)
    wires = wires_of(embeddings_of(rows, token_counts, truncated), encoding)
    assert len(wires) == len(rows)
    for row, wire in enumerate(wires):
        assert wire == ordinary(
            rows, encoded, row, token_count=token_counts[row], truncated=truncated[row]
        )


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("token_count", [0, 127, 128])
def test_bytes_where_a_length_grows(encoding: Encoding, length: int, token_count: int) -> None:
    """The bytes are right on both sides of where a length takes one more byte."""
    rows = np.linspace(-1, 1, 2 * length, dtype=np.float32).reshape(2, length)
    rows[1] = 0
    encoded = encode(rows, encoding)
    wires = wires_of(embeddings_of(rows, [token_count] * 2, [True, False]), encoding)
    for row, truncated in enumerate((True, False)):
        assert wires[row] == ordinary(
            rows, encoded, row, token_count=token_count, truncated=truncated
        )


def test_numbers_come_back() -> None:
    """A client reads the exact numbers."""
    rows = np.array([SPECIAL], np.float32)
    (wire,) = wires_of(embeddings_of(rows, [7], [True]), Encoding.FLOAT32)
    read = embedding_service_pb2.Embedding.FromString(wire)
    assert np.array(read.dense.values, np.float32).tobytes() == rows.tobytes()
    assert (read.token_count, read.truncated, read.dense.dimensions) == (7, True, len(SPECIAL))


@given(
    length=st.sampled_from(LENGTHS) | st.integers(1, 20_000),
    encoding=st.sampled_from(Encoding),
    token_count=st.integers(0, 2**31 - 1),
)
@example(length=1, encoding=Encoding.UBINARY, token_count=2**31 - 1)
@example(length=100_000, encoding=Encoding.INT8, token_count=2**31 - 1)
@settings(max_examples=200, deadline=None)
def test_size_is_a_bound(length: int, encoding: Encoding, token_count: int) -> None:
    """No message is larger than its estimate, nor much smaller."""
    rows = np.ones((1, length), np.float32)
    wires = wires_of(embeddings_of(rows, [token_count], [True]), encoding)
    size = len(delimited(1, wires[0]))
    spec = EmbedSpec(
        prompt="",
        dimensions=length,
        normalize=False,
        truncation=Truncation.END,
        max_tokens=8,
        representations=(Representation.DENSE,),
    )
    bound = embeddings_size(["one text"], spec, encoding, multi_vector_dimensions=0)
    assert size <= bound <= size + 48
    # The number of tokens makes no difference to the size of a dense vector.
    longer = replace(spec, max_tokens=512)
    assert bound == embeddings_size(["one text"], longer, encoding, multi_vector_dimensions=0)


@given(value=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_varint_is_protobufs(value: int) -> None:
    """A number is written as protobuf writes it."""
    from google.protobuf.wrappers_pb2 import Int64Value  # noqa: PLC0415 - for this test alone

    expected = Int64Value(value=value).SerializeToString()
    assert (tag(1, 0) + varint(value) if value else b"") == expected


@given(payload=st.binary(max_size=300))
@settings(deadline=None)
def test_delimited_is_protobufs(payload: bytes) -> None:
    """A field of bytes is written as protobuf writes it."""
    expected = embedding_service_pb2.DenseVector(data=payload).SerializeToString()
    assert (delimited(2, payload) if payload else b"") == expected


@given(
    terms=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(2**-7, 9, width=32), max_size=40),
    tokens=st.integers(0, 40),
    width=st.sampled_from((1, 8, 33)),
    encoding=st.sampled_from(Encoding),
)
@settings(max_examples=200, deadline=None)
def test_sparse_and_multi_vectors_are_those_of_the_ordinary_way(
    terms: dict[int, float], tokens: int, width: int, encoding: Encoding
) -> None:
    """Both are, byte by byte, what protobuf itself would have written, empty ones included."""
    rows = np.random.default_rng(tokens).standard_normal((tokens, width)).astype(np.float32)
    indices = sorted(terms)
    sparse = SparseVector(
        np.array(indices, np.uint32), np.array([terms[one] for one in indices], np.float32)
    )
    embeddings = Embeddings(
        vectors=None,
        sparse=[sparse],
        multi_vectors=[rows],
        token_counts=[tokens],
        truncated=[False],
    )
    encoded = encode(rows, encoding)
    multi = embedding_service_pb2.MultiVector(
        encoding=f"VECTOR_ENCODING_{encoding.name}", dimensions=width, row_count=tokens
    )
    if encoding is Encoding.FLOAT32:
        multi.values.extend(rows.ravel().tolist())
    else:
        multi.data = encoded.data.tobytes()
    if encoded.scales is not None:
        multi.scales.extend(encoded.scales.tolist())
    expected = embedding_service_pb2.Embedding(
        sparse=embedding_service_pb2.SparseVector(
            indices=indices, values=sparse.values.tolist(), dimensions=1000
        ),
        multi_vector=multi,
        token_count=tokens,
    )
    assert wires_of(embeddings, encoding) == [expected.SerializeToString(deterministic=True)]
