"""Reads `Chunking` of the contract. Errors name the field."""

from bisect import bisect_right
from itertools import pairwise

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.tasks.chunking import BySentences, BySpans, ByTokens, Chunking
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.server.contract.field_checks import check_not_negative
from embedgrpc.v1 import common_pb2, embedding_service_pb2

# The most spans of a request or of a stream's message, and the most texts with spans of a request.
SPANS_MAX = 8192
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
    """Read spans. All at once: some microseconds for each text would hold up the event loop."""
    texts = message.texts
    total = len(texts)
    if total <= SPANS_MAX:
        total = max(total, sum(len(one.character_starts) for one in texts))
    if total > SPANS_MAX:
        raise InvalidRequestError(
            f"{field}.texts has {total} spans or entries; the limit is {SPANS_MAX}",
            field=f"{field}.texts",
            metadata={"spans": str(total), "maxSpans": str(SPANS_MAX)},
        )
    starts: list[int] = []
    ends: list[int] = []
    places = [0]
    for index, one in enumerate(texts):
        # First: only the starts were counted.
        check_pairs(one, field=f"{field}.texts[{index}]")
        starts.extend(one.character_starts)
        ends.extend(one.character_ends)
        places.append(len(starts))
    spans: IntArray = np.array([starts, ends], np.int64).T  # [spans, 2]
    first = find_wrong_span(spans)
    if first is not None:
        index = bisect_right(places, first) - 1
        raise wrong_span(spans[first], first - places[index], field=f"{field}.texts[{index}]")
    return BySpans(tuple(spans[one:other] for one, other in pairwise(places)), len(spans), field)


def check_pairs(message: embedding_service_pb2.TextSpans, *, field: str) -> None:
    """Check that each span has a start and an end.

    Raises:
        InvalidRequestError: There are more of the one or of the other.
    """
    starts, ends = len(message.character_starts), len(message.character_ends)
    if starts != ends:
        raise InvalidRequestError(
            f"{field} has {starts} character_starts and {ends} character_ends",
            field=f"{field}.character_ends",
        )


def find_wrong_span(spans: IntArray) -> int | None:
    """Return the first span that has no character or starts before the text; None for none.

    Args:
        spans: int64 [spans, 2].
    """
    wrong = (spans[:, 0] < 0) | (spans[:, 0] >= spans[:, 1])
    return int(wrong.argmax()) if wrong.any() else None


def wrong_span(span: IntArray, index: int, *, field: str) -> InvalidRequestError:
    """Return the error for a span that has no character or starts before the text."""
    return InvalidRequestError(
        f"{field} has a span from {span[0]} to {span[1]}: it must start at 0 or later, and end"
        " behind its start",
        field=f"{field}.character_starts[{index}]",
    )
