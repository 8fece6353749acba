"""The spans of the inputs of a stream: each input that has wrong ones fails alone."""

from collections.abc import Sequence

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.tasks.chunking import BySpans, Chunking, check_count
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.server.contract.chunking_options import (
    SPANS_MAX,
    check_pairs,
    find_wrong_span,
    wrong_span,
)
from embedgrpc.server.contract.message_items import MessageItems
from embedgrpc.v1.embedding_service_pb2 import StreamEmbedInput

_SPANS = "spans"


def check_setup_spans(chunking: Chunking | None) -> None:
    """Check that the setup of a stream names no spans: each input has its own.

    Raises:
        InvalidRequestError: It does.
    """
    if isinstance(chunking, BySpans) and len(chunking.spans):
        field = f"{chunking.field}.texts"
        raise InvalidRequestError(
            f"{field} has {len(chunking.spans)} entries: in a stream each input has its own spans",
            field=field,
        )


def find_bad_spans(
    inputs: Sequence[StreamEmbedInput], chunking: Chunking | None
) -> dict[int, InvalidRequestError]:
    """Return why inputs of a stream's message fail, by index, without a look at their numbers.

    Args:
        inputs: The inputs of one message.
        chunking: How the stream cuts texts into chunks.
    """
    if not isinstance(chunking, BySpans):
        return {
            index: InvalidRequestError(
                f"{_SPANS} needs chunking by spans in the options of the setup", field=_SPANS
            )
            for index, one in enumerate(inputs)
            if one.HasField(_SPANS)
        }
    bad: dict[int, InvalidRequestError] = {}
    total = 0
    for index, one in enumerate(inputs):
        try:
            total = _count(one, total)
        except InvalidRequestError as error:
            bad[index] = error.with_traceback(None)
    return bad


def _count(one: StreamEmbedInput, before: int) -> int:
    """Return the number of spans up to an input, of which those before it have some."""
    if not one.HasField(_SPANS):
        raise InvalidRequestError(
            f"{_SPANS} is missing: the setup asks for chunks by spans", field=_SPANS
        )
    check_pairs(one.spans, field=_SPANS)
    count = len(one.spans.character_starts)
    check_count(count, _SPANS, "the text")
    if before + count > SPANS_MAX:
        raise InvalidRequestError(
            f"{_SPANS} has {count}, and the inputs before it in the message {before}; the limit of"
            f" a message is {SPANS_MAX}",
            field=_SPANS,
            metadata={"spans": str(before + count), "maxSpans": str(SPANS_MAX)},
        )
    return before + count


def spans_of_inputs(inputs: Sequence[StreamEmbedInput]) -> BySpans:
    """Return the spans of inputs that `find_bad_spans` found no fault with.

    Their numbers are read and checked when they are needed.
    """
    count = sum(len(one.spans.character_starts) for one in inputs)
    return BySpans(_InputSpans(inputs), count, _SPANS, indexed=False)


class _InputSpans(MessageItems[IntArray]):
    """The spans of the inputs of a stream, each int64 [spans, 2]."""

    def __init__(self, inputs: Sequence[StreamEmbedInput]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def read(self, index: int) -> IntArray:
        """Return the spans of one text.

        Raises:
            InvalidRequestError: One has no character, or starts before the text.
        """
        message = self._inputs[index].spans
        spans: IntArray = np.array([message.character_starts, message.character_ends], np.int64).T
        first = find_wrong_span(spans)
        if first is not None:
            raise wrong_span(spans[first], first, field=_SPANS)
        return spans
