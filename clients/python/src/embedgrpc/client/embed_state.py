"""The state of one stream of embeddings. No I/O, no locks."""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any

from typing_extensions import Unpack

from embedgrpc.client.batch_state import BatchState
from embedgrpc.client.decoding import decode_ready, decode_stream_result
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.inputs import Spans, valid_spans, valid_text
from embedgrpc.client.options import (
    EmbedOptions,
    embed_options,
    option_texts,
    text_spans,
)
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.stream_state import Kept
from embedgrpc.v1 import embedding_service_pb2 as pb

StreamInputs = (
    Iterable[str]
    | Iterable[tuple[Any, str]]
    | Mapping[Any, str]
    | Iterable[tuple[str, Spans]]
    | Iterable[tuple[Any, str, Spans]]
    | Mapping[Any, tuple[str, Spans]]
)
AsyncStreamInputs = (
    StreamInputs
    | AsyncIterable[str]
    | AsyncIterable[tuple[Any, str]]
    | AsyncIterable[tuple[str, Spans]]
    | AsyncIterable[tuple[Any, str, Spans]]
)


class EmbedState(BatchState[StreamResult, StreamReady]):
    """The state of a stream whose inputs are texts.

    The arguments and errors are those of `ClientApi.embed_stream`.
    """

    _message = pb.StreamEmbedRequest

    def __init__(
        self,
        inputs: AsyncStreamInputs,
        *,
        model: str,
        with_spans: bool = False,
        order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        reconnect_s: float,
        request_limit: RequestLimit,
        **options: Unpack[EmbedOptions],
    ) -> None:
        if options.get("chunk_spans") is not None:
            raise ValueError("chunk_spans is for embed: set with_spans, and give them beside texts")
        if with_spans:
            # Without spans: each input has its own.
            options["chunk_spans"] = ()
        setup = pb.StreamEmbedRequest(
            setup=pb.StreamEmbedSetup(
                model=valid_text("model", model),
                options=embed_options(**options),
                order=enum_value(pb.ResultOrder, order),
                max_response_bytes=RESPONSE_BYTES_MAX,
            )
        )
        request_limit.check(setup, {"model": model} | option_texts(options))
        self._with_spans = with_spans
        self._by_id = isinstance(inputs, Mapping)
        super().__init__(
            inputs.items() if isinstance(inputs, Mapping) else inputs,
            setup=setup,
            order=order,
            batch_size=batch_size,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            request_limit=request_limit,
        )
        self.method = lambda stubs: stubs.embedding.StreamEmbed

    def _read(self, field: str, position: str, item: object) -> Kept:
        kept = self._with_id(item, position)
        if self._with_spans:
            if isinstance(kept, tuple) and len(kept) == 3:  # noqa: PLR2004 -- id, text, spans
                return kept[0], valid_text(field, kept[1]), valid_spans(field, kept[2])
            raise TypeError(f"{field} is neither a pair of a str and spans nor an id with both")
        if isinstance(kept, tuple) and len(kept) == 2:  # noqa: PLR2004 -- a pair
            valid_text(field, kept[1])
            return kept
        raise TypeError(f"{field} is neither a str nor a pair of an id and a str")

    def _content(self, kept: Kept) -> tuple[Mapping[str, Any], int]:
        text = kept[1]
        text_bytes = len(text if text.isascii() else text.encode())
        if not self._with_spans:
            return {"text": text}, text_bytes
        spans = text_spans(kept[2])
        return {"text": text, "spans": spans}, text_bytes + spans.ByteSize()

    def _part_count(self, kept: Kept) -> int:
        return len(kept[2]) if self._with_spans else 0

    def _with_id(self, item: Any, position: str) -> Any:
        if not self._with_spans:
            return (position, item) if isinstance(item, str) else item
        if isinstance(item, tuple) and len(item) == 2:  # noqa: PLR2004 -- a pair
            return (position, *item) if not self._by_id else _flat(*item)
        return item

    def _failure(self, caller_id: Any, error: EmbedGrpcError) -> StreamResult:
        return StreamResult(caller_id, error=error)

    def _decode_ready(self, message: pb.StreamEmbedReady) -> StreamReady:
        return decode_ready(message)

    def _decode(self, result: pb.StreamEmbedResult, caller_id: Any) -> StreamResult:
        return decode_stream_result(result, caller_id)


def _flat(caller_id: Any, value: Any) -> Any:
    """Return an id with its text and spans as one tuple; anything else as it is."""
    if isinstance(value, (tuple, list)) and len(value) == 2:  # noqa: PLR2004 -- a pair
        return caller_id, *value
    return caller_id, value
