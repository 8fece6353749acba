"""The state of one stream of embeddings. No I/O, no locks."""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any

from typing_extensions import Unpack

from embedgrpc.client.batch_state import BatchState
from embedgrpc.client.decoding import decode_ready, decode_stream_result
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.inputs import valid_text
from embedgrpc.client.options import EmbedOptions, embed_options, option_texts
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.stream_state import Kept
from embedgrpc.v1 import embedding_service_pb2 as pb

StreamInputs = Iterable[str] | Iterable[tuple[Any, str]] | Mapping[Any, str]
AsyncStreamInputs = StreamInputs | AsyncIterable[str] | AsyncIterable[tuple[Any, str]]


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
        order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        reconnect_s: float,
        request_limit: RequestLimit,
        **options: Unpack[EmbedOptions],
    ) -> None:
        setup = pb.StreamEmbedRequest(
            setup=pb.StreamEmbedSetup(
                model=valid_text("model", model),
                options=embed_options(**options),
                order=enum_value(pb.ResultOrder, order),
                max_response_bytes=RESPONSE_BYTES_MAX,
            )
        )
        request_limit.check(setup, {"model": model} | option_texts(options))
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
        if isinstance(item, str):
            return position, valid_text(field, item)
        if isinstance(item, tuple) and len(item) == 2:  # noqa: PLR2004 -- a pair
            valid_text(field, item[1])
            return item
        raise TypeError(f"{field} is neither a str nor a pair of an id and a str")

    def _content(self, content: str) -> tuple[Mapping[str, Any], int]:
        return {"text": content}, len(content if content.isascii() else content.encode())

    def _with_id(self, item: Any, position: str) -> Any:
        return (position, item) if isinstance(item, str) else item

    def _failure(self, caller_id: Any, error: EmbedGrpcError) -> StreamResult:
        return StreamResult(caller_id, error=error)

    def _decode_ready(self, message: pb.StreamEmbedReady) -> StreamReady:
        return decode_ready(message)

    def _decode(self, result: pb.StreamEmbedResult, caller_id: Any) -> StreamResult:
        return decode_stream_result(result, caller_id)
