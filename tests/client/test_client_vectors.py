import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from embedgrpc.client import BadResponseError
from embedgrpc.client.decoding import (
    decode_embeddings,
    decode_partial,
    decode_ranking,
    decode_ready,
    decode_rerank_ready,
    decode_stream_result,
)
from embedgrpc.client.tokens import decode_token_counts, decode_tokens
from embedgrpc.client.vectors import decode_floats, decode_multi_vector, decode_rows, decode_sparse
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2, tokenizer_service_pb2

FLOAT32 = "VECTOR_ENCODING_FLOAT32"
FLOAT16 = "VECTOR_ENCODING_FLOAT16"
BFLOAT16 = "VECTOR_ENCODING_BFLOAT16"
INT8 = "VECTOR_ENCODING_INT8"
UBINARY = "VECTOR_ENCODING_UBINARY"
SPECIAL = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-45, 3.4e38]
FLOATS = st.floats(width=32)


def _special(count: int) -> list[float]:
    return [SPECIAL[index % len(SPECIAL)] for index in range(count)]


@settings(deadline=None)
@given(st.lists(FLOATS, max_size=80))
@example([])
@example(_special(1))
@example(_special(31))
@example(_special(32))
@example(_special(4095))
@example(_special(4096))
def test_wire_form_equals_reading_number_by_number(numbers: list[float]) -> None:
    """Both ways return the same numbers, at every length where the header grows."""
    message = pb.DenseVector(values=numbers, dimensions=len(numbers), encoding=FLOAT32, scale=2.0)
    read = decode_floats(message, len(numbers))
    one_by_one = np.array([message.values[index] for index in range(len(numbers))], "<f4")
    np.testing.assert_array_equal(read.view(np.uint32), one_by_one.view(np.uint32))


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 2**32 - 1), FLOATS, max_size=80))
@example(dict.fromkeys(range(4096), 1.5))
@example({})
def test_sparse_wire_form_equals_reading_number_by_number(weights: dict[int, float]) -> None:
    """Indices and weights are decoded, although each field has its own length."""
    message = pb.SparseVector(indices=weights.keys(), values=weights.values(), dimensions=9)
    read = decode_sparse(message)
    assert read.indices.tolist() == list(message.indices)
    np.testing.assert_array_equal(read.values, np.array(list(message.values), np.float32))
    assert read.dimensions == 9


def test_a_message_without_fields_is_an_empty_vector() -> None:
    """An empty message has no header to skip."""
    assert decode_sparse(pb.SparseVector()).values.shape == (0,)
    assert decode_floats(pb.DenseVector(), 0).shape == (0,)


@settings(deadline=None)
@given(hypothesis_numpy.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 40))))
def test_multi_vector_keeps_its_rows(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    """Rows keep their shape, zero rows included."""
    row_count, dimensions = rows.shape
    message = pb.MultiVector(
        values=rows.ravel().tolist(), encoding=FLOAT32, dimensions=dimensions, row_count=row_count
    )
    np.testing.assert_array_equal(decode_multi_vector(message).values, rows)


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1))
def test_bfloat16_is_the_upper_half_of_a_float32(bits: int) -> None:
    """Every bit pattern of bfloat16 is decoded, NaN and infinity included."""
    message = pb.DenseVector(data=bits.to_bytes(2, "little"), encoding=BFLOAT16, dimensions=1)
    assert int(decode_rows(message, 1).view(np.uint32)[0, 0]) == bits << 16


@pytest.mark.parametrize(
    "message",
    [
        pb.DenseVector(values=[1.0, 2.0], dimensions=3, encoding=FLOAT32),
        pb.DenseVector(data=b"12345", dimensions=3, encoding=FLOAT16),
        pb.DenseVector(data=b"12", dimensions=3, encoding=INT8),
        pb.DenseVector(data=b"12", dimensions=8, encoding=UBINARY),
        pb.DenseVector(data=b"12", dimensions=2, encoding=99),  # type: ignore[arg-type] # a newer server's
        pb.DenseVector(data=b"12", dimensions=-2, encoding=INT8),
        pb.DenseVector(dimensions=-2, encoding=FLOAT32),
    ],
)
def test_a_malformed_vector_is_refused(message: pb.DenseVector) -> None:
    """Sizes that do not match, and unknown encodings, are an error."""
    with pytest.raises(BadResponseError):
        decode_rows(message, 1)


def test_a_malformed_answer_is_refused() -> None:
    """Responses that do not match the request, or are inconsistent, are an error."""
    dense = pb.Embedding(dense=pb.DenseVector(values=[1.0], dimensions=1, encoding=FLOAT32))
    wider = pb.Embedding(dense=pb.DenseVector(values=[1.0, 2.0], dimensions=2, encoding=FLOAT32))
    with pytest.raises(BadResponseError, match="1 embeddings came back for 2 texts"):
        decode_embeddings(pb.EmbedResponse(embeddings=[dense]), 2)
    with pytest.raises(BadResponseError, match="2 embeddings came back for 1 texts"):
        decode_embeddings(pb.EmbedResponse(embeddings=[pb.Embedding()] * 2), 1)
    for index in (-1, 3):
        results = [rerank_service_pb2.RankedDocument(index=index)]
        with pytest.raises(BadResponseError, match="none of the 3 documents"):
            _decode_ranking(results)
    twice = [rerank_service_pb2.RankedDocument(index=1)] * 2
    with pytest.raises(BadResponseError, match="a document has two results"):
        _decode_ranking(twice)
    failed = pb.Embedding(error={"code": 3})
    with pytest.raises(BadResponseError, match="a text failed, but the call did not"):
        decode_embeddings(pb.EmbedResponse(embeddings=[failed]), 1)
    with pytest.raises(BadResponseError, match="1 embeddings came back for 2 texts"):
        decode_partial(pb.EmbedResponse(embeddings=[failed]), [0, 1], {})
    with pytest.raises(BadResponseError, match="only 1 of 2 embeddings have dense"):
        decode_embeddings(pb.EmbedResponse(embeddings=[dense, pb.Embedding()]), 2)
    with pytest.raises(BadResponseError, match="differ"):
        decode_embeddings(pb.EmbedResponse(embeddings=[dense, wider]), 2)
    with pytest.raises(BadResponseError, match="neither embedding nor error"):
        decode_stream_result(pb.StreamEmbedResult(id="1"), "1")
    for inputs, batch in ((0, 1), (1, 0)):
        with pytest.raises(BadResponseError, match="allow no input"):
            decode_ready(pb.StreamEmbedReady(max_in_flight_inputs=inputs, max_batch_inputs=batch))
    with pytest.raises(BadResponseError, match="allow no input"):
        decode_rerank_ready(rerank_service_pb2.StreamRerankReady(max_in_flight_inputs=1))
    with pytest.raises(BadResponseError, match="1 entries came back for 2 texts"):
        decode_tokens(tokenizer_service_pb2.TokenizeResponse(texts=[{}]), 2)
    with pytest.raises(BadResponseError, match="differ in length"):
        decode_tokens(tokenizer_service_pb2.TokenizeResponse(texts=[{"ids": [1]}]), 1)
    with pytest.raises(BadResponseError, match="0 entries came back for 1 texts"):
        decode_token_counts(tokenizer_service_pb2.CountTokensResponse(), 1)
    with pytest.raises(BadResponseError, match="values"):
        decode_sparse(pb.SparseVector(indices=[1, 2], values=[1.0]))
    with pytest.raises(BadResponseError, match="scales"):
        decode_multi_vector(pb.MultiVector(data=b"1", row_count=1, dimensions=1, encoding=INT8))


def _decode_ranking(results: list[rerank_service_pb2.RankedDocument]) -> None:
    response = rerank_service_pb2.RerankResponse(results=results)
    decode_ranking(response, [0, 1, 2], {}, response)
