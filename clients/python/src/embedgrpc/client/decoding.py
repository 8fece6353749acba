"""Decode the messages of the server into the results of calls."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from embedgrpc.client.enums import Encoding, enum_name
from embedgrpc.client.errors import BadResponseError
from embedgrpc.client.result_types import (
    Embeddings,
    RankedDocument,
    Ranking,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.status_errors import error_of_item
from embedgrpc.client.vectors import Vectors, decode_multi_vector, decode_rows, decode_sparse
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2


def decode_embeddings(response: pb.EmbedResponse, text_count: int) -> Embeddings:
    """Decode the response of Embed.

    Args:
        response: The response.
        text_count: The number of texts that were sent.

    Raises:
        BadResponseError: The number of embeddings is not that of the texts, or their kinds
            differ.
    """
    embeddings = response.embeddings
    if len(embeddings) != text_count:
        raise BadResponseError(f"{len(embeddings)} embeddings came back for {text_count} texts")
    dense = _all_or_none(embeddings, "dense")
    encoding = dense[0].encoding if dense else pb.VECTOR_ENCODING_FLOAT32
    return Embeddings(
        vectors=_decode_matrix(dense, text_count),
        scales=(
            np.array([vector.scale for vector in dense], np.float32)
            if encoding == pb.VECTOR_ENCODING_INT8
            else None
        ),
        encoding=cast("Encoding", enum_name(pb.VectorEncoding, encoding)),
        dimensions=dense[0].dimensions if dense else 0,
        sparse=tuple(map(decode_sparse, _all_or_none(embeddings, "sparse"))),
        multi_vectors=tuple(map(decode_multi_vector, _all_or_none(embeddings, "multi_vector"))),
        token_counts=np.array([each.token_count for each in embeddings], np.int32),
        truncated=np.array([each.truncated for each in embeddings], np.bool_),
        model=response.model,
        revision=response.revision,
        fingerprint=response.fingerprint,
        input_tokens=response.usage.input_tokens,
    )


def decode_ranking(response: rerank_service_pb2.RerankResponse, document_count: int) -> Ranking:
    """Decode the response of Rerank.

    Args:
        response: The response.
        document_count: The number of documents that were sent.

    Raises:
        BadResponseError: A result is for a document that was not sent.
    """
    if any(not 0 <= ranked.index < document_count for ranked in response.results):
        raise BadResponseError(f"a result belongs to none of the {document_count} documents")
    return Ranking(
        results=tuple(
            RankedDocument(ranked.index, ranked.score, ranked.document, ranked.truncated)
            for ranked in response.results
        ),
        model=response.model,
        revision=response.revision,
        fingerprint=response.fingerprint,
        input_tokens=response.usage.input_tokens,
    )


def decode_ready(message: pb.StreamEmbedReady) -> StreamReady:
    """Decode the first response of a stream.

    Raises:
        BadResponseError: The limits of the stream allow no input at all.
    """
    if message.max_in_flight_inputs < 1 or message.max_batch_inputs < 1:
        raise BadResponseError("the limits of the stream allow no input")
    return StreamReady(
        model=message.model,
        revision=message.revision,
        fingerprint=message.fingerprint,
        dimensions=message.dimensions,
        max_in_flight_inputs=message.max_in_flight_inputs,
        max_batch_inputs=message.max_batch_inputs,
    )


def decode_stream_result(message: pb.StreamEmbedResult, caller_id: Any) -> StreamResult:
    """Decode one result of a stream.

    Args:
        message: The result.
        caller_id: The id that the caller gave the input.

    Raises:
        BadResponseError: It has neither embedding nor error, or its vector is malformed.
    """
    if message.HasField("error"):
        return StreamResult(caller_id, error=error_of_item(message.error))
    if not message.HasField("embedding"):
        raise BadResponseError("a result of the stream has neither embedding nor error")
    embedding = message.embedding
    is_int8 = embedding.dense.encoding == pb.VECTOR_ENCODING_INT8
    return StreamResult(
        id=caller_id,
        vector=decode_rows(embedding.dense, 1)[0] if embedding.HasField("dense") else None,
        scale=embedding.dense.scale if is_int8 else 1.0,
        sparse=decode_sparse(embedding.sparse) if embedding.HasField("sparse") else None,
        multi_vector=(
            decode_multi_vector(embedding.multi_vector)
            if embedding.HasField("multi_vector")
            else None
        ),
        token_count=embedding.token_count,
        truncated=embedding.truncated,
    )


def _all_or_none(embeddings: Sequence[pb.Embedding], field: str) -> list[Any]:
    found = [getattr(embedding, field) for embedding in embeddings if embedding.HasField(field)]
    if found and len(found) != len(embeddings):
        raise BadResponseError(f"only {len(found)} of {len(embeddings)} embeddings have {field}")
    return found


def _decode_matrix(vectors: list[pb.DenseVector], text_count: int) -> Vectors:
    if not vectors:
        return np.empty((text_count, 0), np.float32)
    if len({(vector.encoding, vector.dimensions) for vector in vectors}) > 1:
        raise BadResponseError("the vectors of one response differ in encoding or dimensions")
    return np.concatenate([decode_rows(vector, 1) for vector in vectors])
