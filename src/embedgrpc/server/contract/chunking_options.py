"""Reads `Chunking` of the contract. Errors name the field."""

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.tasks.chunking import CHUNKS_MAX, BySentences, BySpans, ByTokens, Chunking
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.server.contract.field_checks import check_not_negative
from embedgrpc.v1 import common_pb2, embedding_service_pb2

_WHOLE_TEXTS = (common_pb2.TRUNCATION_UNSPECIFIED, common_pb2.TRUNCATION_NONE)


def read_chunking(options: embedding_service_pb2.EmbedOptions, *, field: str) -> Chunking | None:
    """Return how to cut texts into chunks; None for no chunks.

    Raises:
        InvalidRequestError: A value is wrong, or texts may be truncated.
    """
    if not options.HasField("chunking"):
        return None
    place = f"{field}.chunking"
    if options.truncation not in _WHOLE_TEXTS:
        raise InvalidRequestError(
            f"{field}.truncation must be NONE or unset with chunking: a chunk that is cut off has"
            " no vector",
            field=f"{field}.truncation",
        )
    chunking = options.chunking
    match chunking.WhichOneof("by"):
        case "tokens":
            return _read_tokens(chunking.tokens, field=f"{place}.tokens")
        case "sentences":
            count = chunking.sentences.count
            _check_positive(count, field=f"{place}.sentences.count")
            return BySentences(count, f"{place}.sentences")
        case "spans":
            return _read_spans(chunking.spans, field=f"{place}.spans")
    raise InvalidRequestError(f"{place} must hold tokens, sentences or spans", field=place)


def check_spans(chunking: Chunking | None, count: int) -> None:
    """Check that there are spans for each of `count` texts, if spans are given.

    Raises:
        InvalidRequestError: There are more or fewer.
    """
    if isinstance(chunking, BySpans) and len(chunking.spans) != count:
        field = f"{chunking.field}.texts"
        raise InvalidRequestError(
            f"{field} has {len(chunking.spans)} entries for {count} texts", field=field
        )


def _read_tokens(message: embedding_service_pb2.ChunkByTokens, *, field: str) -> ByTokens:
    _check_positive(message.size, field=f"{field}.size")
    check_not_negative(message.overlap, field=f"{field}.overlap")
    if message.overlap >= message.size:
        raise InvalidRequestError(
            f"{field}.overlap is {message.overlap}; it must be less than the size, {message.size}",
            field=f"{field}.overlap",
        )
    return ByTokens(message.size, message.overlap, field)


def _check_positive(value: int, *, field: str) -> None:
    if value < 1:
        raise InvalidRequestError(f"{field} is {value}; it must be at least 1", field=field)


def _read_spans(message: embedding_service_pb2.ChunkBySpans, *, field: str) -> BySpans:
    return BySpans(
        tuple(
            _read_text(one, field=f"{field}.texts[{index}]")
            for index, one in enumerate(message.texts)
        ),
        field,
    )


def _read_text(message: embedding_service_pb2.TextSpans, *, field: str) -> IntArray:
    """Return where the spans of one text start and end, int64 [spans, 2]."""
    count = len(message.character_starts)
    if count != len(message.character_ends):
        raise InvalidRequestError(
            f"{field} has {count} character_starts and {len(message.character_ends)}"
            " character_ends",
            field=f"{field}.character_ends",
        )
    if count > CHUNKS_MAX:
        raise InvalidRequestError(
            f"{field} has {count} spans; the limit is {CHUNKS_MAX}",
            field=field,
            metadata={"chunks": str(count), "maxChunks": str(CHUNKS_MAX)},
        )
    spans = np.array([message.character_starts, message.character_ends], np.int64).T
    wrong = (spans[:, 0] < 0) | (spans[:, 0] >= spans[:, 1])
    if wrong.any():
        place = int(wrong.argmax())
        raise InvalidRequestError(
            f"{field} has a span from {spans[place, 0]} to {spans[place, 1]}: it must start at 0"
            " or later, and end behind its start",
            field=f"{field}.character_starts[{place}]",
        )
    return spans
