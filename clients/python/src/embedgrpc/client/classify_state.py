"""The state of one stream of classifications. No I/O, no locks."""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, cast

from typing_extensions import Unpack

from embedgrpc.client.batch_state import BatchState
from embedgrpc.client.classifications import (
    ClassifyResult,
    ClassifyStreamReady,
    decode_classify_ready,
    decode_classify_result,
)
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.inputs import ClassifyInputs, valid_text
from embedgrpc.client.options import ClassifyOptions, classify_options
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.stream_state import Kept
from embedgrpc.v1 import classify_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2

ClassifyStreamInputs = (
    ClassifyInputs
    | Iterable[tuple[Any, str | tuple[str, str]]]
    | Mapping[Any, str | tuple[str, str]]
)
AsyncClassifyStreamInputs = (
    ClassifyStreamInputs
    | AsyncIterable[str]
    | AsyncIterable[tuple[str, str]]
    | AsyncIterable[tuple[Any, str | tuple[str, str]]]
)


class ClassifyState(BatchState[ClassifyResult, ClassifyStreamReady]):
    """The state of a stream whose inputs are texts or pairs of texts.

    The arguments and errors are those of `ClientApi.classify_stream`.
    """

    _message = pb.StreamClassifyRequest

    def __init__(
        self,
        inputs: AsyncClassifyStreamInputs,
        *,
        model: str,
        with_ids: bool,
        result_order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        reconnect_s: float,
        request_limit: RequestLimit,
        **options: Unpack[ClassifyOptions],
    ) -> None:
        setup = pb.StreamClassifyRequest(
            setup=pb.StreamClassifySetup(
                model=valid_text("model", model),
                options=classify_options(**options),
                order=enum_value(embedding_service_pb2.ResultOrder, result_order),
                max_response_bytes=RESPONSE_BYTES_MAX,
            )
        )
        request_limit.check(setup, {"model": model})
        super().__init__(
            inputs.items() if isinstance(inputs, Mapping) else inputs,
            setup=setup,
            order=result_order,
            batch_size=batch_size,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            request_limit=request_limit,
        )
        self.method = lambda stubs: stubs.classify.StreamClassify
        self._with_ids = with_ids or isinstance(inputs, Mapping)

    def _read(self, field: str, position: str, item: object) -> Kept:
        caller_id: Any = position
        if self._with_ids:
            match item:
                case (caller_id, item):
                    pass
                case _:
                    raise TypeError(f"{field} is not a pair of an id and an input")
        match item:
            case str(text):
                return caller_id, valid_text(field, text)
            case (first, second):
                valid_text(f"{field}[0]", cast("str", first))
                valid_text(f"{field}[1]", cast("str", second))
                return caller_id, (first, second)
            case _:
                raise TypeError(f"{field} is neither a text nor a pair of texts")

    def _content(self, kept: Kept) -> tuple[Mapping[str, Any], int]:
        content: str | tuple[str, str] = kept[1]
        if isinstance(content, str):
            return {"text": content}, len(content.encode())
        pair = pb.TextPair(first=content[0], second=content[1])
        return {"pair": pair}, pair.ByteSize()

    def _with_id(self, item: Any, position: str) -> Any:
        return item if self._with_ids else (position, item)

    def _failure(self, caller_id: Any, error: EmbedGrpcError) -> ClassifyResult:
        return ClassifyResult(caller_id, error=error)

    def _decode_ready(self, message: pb.StreamClassifyReady) -> ClassifyStreamReady:
        return decode_classify_ready(message)

    def _decode(self, result: pb.StreamClassifyResult, caller_id: Any) -> ClassifyResult:
        return decode_classify_result(result, caller_id)
