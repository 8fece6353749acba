"""Decode the messages of the server into the results of calls."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from embedgrpc.client.enums import Encoding, enum_name
from embedgrpc.client.errors import BadResponseError, EmbedGrpcError
from embedgrpc.client.result_types import (
    Embeddings,
    PartialEmbeddings,
    RankedDocument,
    Ranking,
    RerankStreamReady,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.server_description import decode_limits, require_room
from embedgrpc.client.status_errors import error_of_item
from embedgrpc.client.text_parts import decode_chunks, decode_token_vectors
from embedgrpc.client.vectors import Vectors, decode_multi_vector, decode_rows, decode_sparse
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2


def decode_embeddings(response: pb.EmbedResponse, text_count: int) -> Embeddings:
    """Decode the response of Embed.

    Args:
        response: The response.
        text_count: The number of texts that were sent.

    Raises:
        BadResponseError: The number of embeddings is not that of the texts, their kinds differ,
            or one is an error.
    """
    _require_embeddings(response, text_count)
    # Where only some have one, the others have more representations: `_all_or_none` finds that.
    if text_count and response.embeddings[0].HasField("error"):
        raise BadResponseError("a text failed, but the call did not")
    return _decode_batch(response.embeddings, response)


def decode_partial(
    response: pb.EmbedResponse, sent: Sequence[int], unsent: Mapping[int, EmbedGrpcError]
) -> PartialEmbeddings:
    """Decode the response of Embed where texts may fail alone.

    Args:
        response: The response.
        sent: The positions of the texts that were sent.
        unsent: The errors of the others, by position.

    Raises:
        BadResponseError: The number of embeddings is not that of the texts sent, or their kinds
            differ.
    """
    _require_embeddings(response, len(sent))
    errors = dict(unsent)
    indices: list[int] = []
    embeddings: list[pb.Embedding] = []
    for index, embedding in zip(sent, response.embeddings, strict=True):
        if embedding.HasField("error"):
            errors[index] = error_of_item(embedding.error)
        else:
            indices.append(index)
            embeddings.append(embedding)
    return PartialEmbeddings(
        _decode_batch(embeddings, response),
        np.array(indices, np.int64),
        dict(sorted(errors.items())),
    )


def decode_ranking(
    message: rerank_service_pb2.RerankResponse | rerank_service_pb2.Ranking,
    sent: Sequence[int],
    unsent: Mapping[int, EmbedGrpcError],
    model: rerank_service_pb2.RerankResponse | RerankStreamReady,
) -> Ranking:
    """Decode a ranking.

    Args:
        message: The ranking.
        sent: The positions of the documents that were sent.
        unsent: The errors of the others, by position.
        model: The message that names the model.

    Raises:
        BadResponseError: A result is for a document that was not sent, or is the second for one.
    """
    found = [ranked.index for ranked in message.results]
    found += [failed.index for failed in message.failures]
    if any(not 0 <= index < len(sent) for index in found):
        raise BadResponseError(f"a result belongs to none of the {len(sent)} documents")
    if len(set(found)) < len(found):
        raise BadResponseError("a document has two results")
    errors = dict(unsent)
    errors |= {sent[failed.index]: error_of_item(failed.error) for failed in message.failures}
    return Ranking(
        results=tuple(
            RankedDocument(sent[ranked.index], ranked.score, ranked.document, ranked.truncated)
            for ranked in message.results
        ),
        model=model.model,
        revision=model.revision,
        fingerprint=model.fingerprint,
        input_tokens=message.usage.input_tokens,
        query_tokens=message.usage.query_tokens,
        document_tokens=message.usage.document_tokens,
        errors=dict(sorted(errors.items())),
    )


def decode_ready(message: pb.StreamEmbedReady) -> StreamReady:
    """Decode the first response of a stream of embeddings.

    Raises:
        BadResponseError: The limits of the stream allow no input at all.
    """
    require_room(message.max_in_flight_inputs, message.max_batch_inputs)
    return StreamReady(
        model=message.model,
        revision=message.revision,
        fingerprint=message.fingerprint,
        dimensions=message.dimensions,
        max_in_flight_inputs=message.max_in_flight_inputs,
        max_batch_inputs=message.max_batch_inputs,
        limits=decode_limits(message.limits),
    )


def decode_rerank_ready(message: rerank_service_pb2.StreamRerankReady) -> RerankStreamReady:
    """Decode the first response of a stream of rankings.

    Raises:
        BadResponseError: The limits of the stream allow no document at all.
    """
    require_room(message.max_in_flight_inputs, message.max_part_inputs, message.max_query_inputs)
    return RerankStreamReady(
        model=message.model,
        revision=message.revision,
        fingerprint=message.fingerprint,
        max_in_flight_inputs=message.max_in_flight_inputs,
        max_part_inputs=message.max_part_inputs,
        max_query_inputs=message.max_query_inputs,
        limits=decode_limits(message.limits),
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
        token_vectors=(
            decode_token_vectors(embedding.token_vectors)
            if embedding.HasField("token_vectors")
            else None
        ),
        chunks=decode_chunks(embedding.chunks) if embedding.HasField("chunks") else None,
    )


def _decode_batch(embeddings: Sequence[pb.Embedding], response: pb.EmbedResponse) -> Embeddings:
    dense = _all_or_none(embeddings, "dense")
    encoding = dense[0].encoding if dense else pb.VECTOR_ENCODING_FLOAT32
    return Embeddings(
        vectors=_decode_matrix(dense, len(embeddings)),
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
        token_vectors=tuple(map(decode_token_vectors, _all_or_none(embeddings, "token_vectors"))),
        chunks=tuple(map(decode_chunks, _all_or_none(embeddings, "chunks"))),
    )


def _require_embeddings(response: pb.EmbedResponse, text_count: int) -> None:
    found = len(response.embeddings)
    if found != text_count:
        raise BadResponseError(f"{found} embeddings came back for {text_count} texts")


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
