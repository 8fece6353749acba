"""Made-up results: the vector of a text is a hash of it, so a test knows which one is due."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.errors import ERRORS_BY_REASON
from embedgrpc.v1 import classify_service_pb2, common_pb2, model_service_pb2, rerank_service_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb

DIMENSIONS = 12
VOCABULARY = 1000
FAIL = "fail:"


def reason_of(text: str) -> str:
    """Return the reason why a text fails; "" if it does not: blank texts, and "fail:REASON"."""
    if not text.strip():
        return "EMPTY_INPUT"
    return text.removeprefix(FAIL) if text.startswith(FAIL) else ""


def vector_of(text: str, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return the vector of a text: float32 [dimensions], each number exact in bfloat16."""
    digest = hashlib.shake_128(text.encode()).digest(dimensions)
    return (np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5).astype(np.float32)


def model(name: str) -> model_service_pb2.Model:
    """Return the description of a model."""
    return model_service_pb2.Model(
        id=name,
        aliases=["alias"],
        tasks=["MODEL_TASK_EMBED"],
        representations=["REPRESENTATION_DENSE", "REPRESENTATION_MULTI_VECTOR"],
        encodings=["VECTOR_ENCODING_FLOAT32"],
        dimensions=DIMENSIONS,
        similarity="MODEL_SIMILARITY_COSINE",
        prompts={"query": "query: "},
        default_truncation="TRUNCATION_END",
        backend="MODEL_BACKEND_ONNX_RUNTIME",
        state="MODEL_STATE_UNAVAILABLE",
        max_tokens=512,
        max_query_tokens=64,
        limits=limits(),
        languages=["en", "de"],
        takes_instruction=True,
    )


def limits() -> common_pb2.Limits:
    """Return limits."""
    made = common_pb2.Limits(max_request_bytes=2**22, max_inputs=100, max_text_characters=1000)
    made.max_unary_duration.FromMilliseconds(2500)
    return made


def embedding(text: str, options: pb.EmbedOptions) -> pb.Embedding:
    """Embed a text in every representation that `options` asks for."""
    message = pb.Embedding(token_count=len(text), truncated=text.startswith("long"))
    wanted = options.representations or [pb.REPRESENTATION_DENSE]
    row = vector_of(text, options.dimensions or DIMENSIONS)
    if pb.REPRESENTATION_DENSE in wanted:
        message.dense.dimensions = len(row)
        _fill(message.dense, [row], options.encoding)
        if options.encoding == pb.VECTOR_ENCODING_INT8:
            message.dense.scale = 0.5
    if pb.REPRESENTATION_SPARSE in wanted:
        terms = sorted(set(text.encode()))
        message.sparse.indices.extend(terms)
        message.sparse.values.extend(term / 2 for term in terms)
        message.sparse.dimensions = VOCABULARY
    if pb.REPRESENTATION_MULTI_VECTOR in wanted:
        rows = [vector_of(word, options.dimensions or DIMENSIONS) for word in text.split()]
        message.multi_vector.dimensions = len(row)
        message.multi_vector.row_count = len(rows)
        _fill(message.multi_vector, rows, options.encoding)
        if options.encoding == pb.VECTOR_ENCODING_INT8:
            message.multi_vector.scales.extend(range(1, len(rows) + 1))
    if options.HasField("chunking"):
        _add_words(message.chunks, text, options)
    return message


def _add_words(chunks: pb.ChunkVectors, text: str, options: pb.EmbedOptions) -> None:
    """Make a chunk of each word of an ASCII text."""
    start = 0
    spans = []
    for word in text.split():
        start = text.index(word, start)
        spans.append((start, start + len(word)))
    _add_parts(chunks, text, spans, options)


def _add_parts(
    chunks: pb.ChunkVectors, text: str, spans: list[tuple[int, int]], options: pb.EmbedOptions
) -> None:
    """Make a chunk of each span of an ASCII text."""
    for starts, ends in (
        (chunks.character_starts, chunks.character_ends),
        (chunks.byte_starts, chunks.byte_ends),
    ):
        starts.extend(start for start, _ in spans)
        ends.extend(end for _, end in spans)
    parts = [text[start:end] for start, end in spans]
    chunks.token_counts.extend(map(len, parts))
    rows = [vector_of(part, options.dimensions or DIMENSIONS) for part in parts]
    chunks.vectors.dimensions = options.dimensions or DIMENSIONS
    chunks.vectors.row_count = len(rows)
    _fill(chunks.vectors, rows, options.encoding)
    if options.encoding == pb.VECTOR_ENCODING_INT8:
        chunks.vectors.scales.extend([0.5] * len(rows))


def stream_result(item: pb.StreamEmbedInput, options: pb.EmbedOptions) -> pb.StreamEmbedResult:
    """Embed one input of a stream, or fail as its text says."""
    if reason_of(item.text):
        return pb.StreamEmbedResult(id=item.id, error=item_error(item.text))
    message = embedding(item.text, options)
    if item.HasField("spans"):
        spans = zip(item.spans.character_starts, item.spans.character_ends, strict=True)
        message.chunks.Clear()
        _add_parts(message.chunks, item.text, list(spans), options)
    return pb.StreamEmbedResult(id=item.id, embedding=message)


def partial_embedding(text: str, options: pb.EmbedOptions) -> pb.Embedding:
    """Embed a text, or fail as it says."""
    if reason_of(text):
        return pb.Embedding(error=item_error(text))
    return embedding(text, options)


def item_error(text: str) -> common_pb2.ItemError:
    """Return the error that a text such as "fail:OVERLOADED" asks for, with a retry delay."""
    reason = reason_of(text)
    error = common_pb2.ItemError(
        code=ERRORS_BY_REASON[reason].code.value[0],
        reason=f"ERROR_REASON_{reason}",
        message="as asked",
        metadata={"label": "MADE_UP"},
    )
    error.retry_delay.FromMilliseconds(1500)
    return error


def ranking(
    query: str, documents: list[str], options: rerank_service_pb2.RerankOptions
) -> rerank_service_pb2.Ranking:
    """Score a document by the characters it shares with the query, or fail as it says."""
    scores = {
        index: len(set(query) & set(document))
        for index, document in enumerate(documents)
        if not reason_of(document)
    }
    best = sorted(scores, key=lambda index: -scores[index])
    return rerank_service_pb2.Ranking(
        results=[
            rerank_service_pb2.RankedDocument(
                index=index,
                score=scores[index],
                document=documents[index] if options.return_documents else "",
            )
            for index in best[: options.top_n or None]
        ],
        failures=[
            rerank_service_pb2.FailedDocument(index=index, error=item_error(document))
            for index, document in enumerate(documents)
            if reason_of(document)
        ],
        usage=common_pb2.Usage(input_tokens=7, query_tokens=3, document_tokens=4),
    )


def classification(text: str) -> classify_service_pb2.Classification:
    """Score the labels "long" and "short" by the length of a text, or fail as it says."""
    if reason_of(text):
        return classify_service_pb2.Classification(error=item_error(text))
    scores = [("short", -len(text), 1), ("long", len(text), 0)]
    return classify_service_pb2.Classification(
        labels=[
            classify_service_pb2.LabelScore(label=label, score=score, index=index)
            for label, score, index in scores
        ],
        token_count=len(text),
        truncated=len(text) > 5,
    )


def stream_classification(
    each: classify_service_pb2.StreamClassifyInput, _: classify_service_pb2.ClassifyOptions
) -> classify_service_pb2.StreamClassifyResult:
    """Classify one input of a stream, or fail as its text or its first one says."""
    pair = each.pair
    text = each.text or (pair.first if reason_of(pair.first) else pair.first + pair.second)
    result = classify_service_pb2.StreamClassifyResult(id=each.id)
    if reason_of(text):
        result.error.CopyFrom(item_error(text))
    else:
        result.classification.CopyFrom(classification(text))
    return result


def _fill(message: Any, rows: list[NDArray[np.float32]], encoding: int) -> None:
    message.encoding = encoding or pb.VECTOR_ENCODING_FLOAT32
    if message.encoding == pb.VECTOR_ENCODING_FLOAT32:
        for row in rows:
            message.values.extend(row.tolist())
        return
    writers: dict[int, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
        pb.VECTOR_ENCODING_FLOAT16: lambda row: row.astype("<f2"),
        pb.VECTOR_ENCODING_BFLOAT16: lambda row: (row.view("<u4") >> 16).astype("<u2"),
        pb.VECTOR_ENCODING_INT8: lambda row: np.floor(row).astype(np.int8),
        pb.VECTOR_ENCODING_UBINARY: lambda row: np.packbits(row > 0),
    }
    write = writers[encoding]
    message.data = b"".join(write(row).tobytes() for row in rows)
