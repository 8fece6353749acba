"""RerankService: reads requests, runs them, and writes responses in wire form."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedgrpc.engine.errors import EngineError, UnsupportedError
from embedgrpc.engine.tasks.reranking import Ranking, RerankSpec, ScoreScale
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.kinds import Kind
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.error_interceptor import is_cancelled, log_fault, stray_cancellation
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.contract.field_checks import (
    check_count,
    check_enum,
    check_id,
    check_not_negative,
)
from embedgrpc.server.contract.options import prompt_for, read_max_tokens, read_truncation
from embedgrpc.server.contract.response_sizes import COMMON_BYTES, check_response_size
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ServedModel
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import common_pb2, rerank_service_pb2, rerank_service_pb2_grpc

_SCALES: dict[int, ScoreScale] = {
    rerank_service_pb2.SCORE_SCALE_UNSPECIFIED: ScoreScale.MODEL,
    rerank_service_pb2.SCORE_SCALE_RAW: ScoreScale.RAW,
    rerank_service_pb2.SCORE_SCALE_SIGMOID: ScoreScale.SIGMOID,
}
# Index, score, flag and keys of one document, without its text.
_RESULT_BYTES = 24
# Packing so many results takes a quarter of a millisecond.
_FEW_DOCUMENTS = 128
_ID_FIELD, _RESPONSE_FIELD, _ERROR_FIELD = 1, 2, 3


class RerankService(rerank_service_pb2_grpc.RerankServiceServicer):
    """Serves Rerank and StreamRerank."""

    def __init__(self, catalog: Catalog, settings: Settings, open_streams: OpenStreams) -> None:
        self._catalog = catalog
        self._settings = settings
        self._open_streams = open_streams

    async def Rerank(  # noqa: N802 - the contract's name
        self, request: rerank_service_pb2.RerankRequest, context: Any
    ) -> bytes:
        """Score the documents of one query and return them best first.

        Returns:
            A `RerankResponse` in wire form.
        """
        call = begin_call(
            context, WorkClass.INTERACTIVE, self._settings, max_s=self._settings.max_unary_s
        )
        await reserve_response(_response_bytes(request, max_inputs=self._settings.max_inputs))
        response = await self._rerank(request, call, client_response_bytes(context))
        describe_call(input_tokens=response.input_tokens)
        return response.wire

    async def StreamRerank(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Rerank many queries; one that fails does not end the stream."""
        bidi: BidiStream[_StreamResponse] = BidiStream(
            context, request_iterator, idle_timeout_s=self._settings.stream_idle_timeout_s
        )
        bidi.set_window(self._settings.max_stream_in_flight_inputs)
        call = begin_call(context, WorkClass.BULK, self._settings)
        limit = client_response_bytes(context)
        ids: set[str] = set()
        tasks: set[asyncio.Task[None]] = set()
        input_tokens = 0

        async def answer(
            identifier: str, request: rerank_service_pb2.RerankRequest, inputs: int
        ) -> None:
            tokens = 0
            try:
                ranked = await self._rerank(request, call, limit)
                outcome = delimited(_RESPONSE_FIELD, ranked.wire)
                tokens = ranked.input_tokens
            except EngineError as error:
                outcome = _failure(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                outcome = _failure(stray_cancellation("StreamRerank"))
            except Exception as error:  # noqa: BLE001 - a stream waits for every answer
                fault = EngineError.fault()
                log_fault(error, fault, method="StreamRerank")
                outcome = _failure(fault)
            bidi.answer(_StreamResponse(identifier, outcome, inputs, tokens))

        async def read() -> None:
            async for request in bidi.receive():
                identifier = request.id
                check_id(identifier, ids, field="id")
                ids.add(identifier)
                inputs = max(len(request.request.documents), 1)
                await bidi.accept(
                    inputs,
                    answer_bytes=_response_bytes(
                        request.request, max_inputs=self._settings.max_inputs
                    ),
                )
                task = asyncio.create_task(answer(identifier, request.request, inputs))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        def pack(outbox: deque[_StreamResponse]) -> tuple[Any, int]:
            nonlocal input_tokens
            response = outbox.popleft()
            ids.discard(response.id)
            input_tokens += response.input_tokens
            wire = delimited(_ID_FIELD, response.id.encode()) if response.id else b""
            return wire + response.outcome, response.inputs

        with self._open_streams.watch(bidi):
            try:
                await bidi.run(read, pack)
            finally:
                describe_call(input_tokens=input_tokens)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _rerank(
        self, request: rerank_service_pb2.RerankRequest, call: Call, max_response_bytes: int
    ) -> "_Response":
        served = self._catalog.find(request.model)
        loaded, reranker = served.reranker()
        documents = request.documents
        check_count(len(documents), limit=self._settings.max_inputs, field="documents")
        check_not_negative(request.top_n, field="top_n")
        spec = _read_spec(request, served, loaded)
        count = min(request.top_n or len(documents), len(documents))
        documents_bytes = request.ByteSize()
        await _check_size(
            request,
            count,
            documents_bytes,
            limit=min(self._settings.max_response_bytes, max_response_bytes),
        )
        describe_call(
            operation="rerank", request_model=request.model or served.id, response_model=served.id
        )
        ranking = await reranker.rerank(
            request.query, documents, spec, call, documents_bytes=documents_bytes
        )

        def pack() -> _Response:
            response = _pack(request, served, loaded, ranking, count)
            return _Response(response.SerializeToString(), ranking.input_tokens)

        if count <= _FEW_DOCUMENTS and not request.return_documents:
            return pack()
        # Packing them here would block the event loop.
        return await asyncio.to_thread(pack)


@dataclass(frozen=True, slots=True)
class _Response:
    """A `RerankResponse` in wire form, and its tokens."""

    wire: bytes
    input_tokens: int


@dataclass(frozen=True, slots=True)
class _StreamResponse:
    """A `StreamRerankResponse` whose outcome is in wire form, and its inputs and tokens."""

    id: str
    outcome: bytes
    inputs: int
    input_tokens: int


def _failure(error: EngineError) -> bytes:
    return delimited(_ERROR_FIELD, item_error(error).SerializeToString())


async def _check_size(
    request: rerank_service_pb2.RerankRequest, count: int, size_bytes: int, *, limit: int
) -> None:
    """Check that a ranking fits into one response.

    Args:
        request: The request.
        count: The number of documents to return.
        size_bytes: The size of the request.
        limit: The most bytes of a response.

    Raises:
        InvalidRequestError: The response may be larger than the limit.
    """
    size = count * _RESULT_BYTES
    if request.return_documents and size + size_bytes + COMMON_BYTES > limit:
        # The largest documents may be returned. Looking at every document may take milliseconds.
        size += await asyncio.to_thread(_largest, request.documents, count)
    check_response_size(size, limit=limit)


def _largest(documents: Sequence[str], count: int) -> int:
    """Return the bytes of the largest documents."""
    sizes = sorted((len(document.encode()) for document in documents), reverse=True)
    return sum(sizes[:count])


def _response_bytes(request: rerank_service_pb2.RerankRequest, *, max_inputs: int) -> int:
    """Return an upper bound of the bytes of a response, before the request is checked."""
    documents = request.ByteSize() if request.return_documents else 0
    return min(len(request.documents), max_inputs) * _RESULT_BYTES + documents


def _read_spec(
    request: rerank_service_pb2.RerankRequest, served: ServedModel, loaded: LoadedModel
) -> RerankSpec:
    """Return how to score documents."""
    properties = loaded.properties
    check_enum(rerank_service_pb2.ScoreScale, request.score_scale, field="score_scale")
    scale = _SCALES[request.score_scale]
    embeds = properties.kind is Kind.EMBEDDING
    if embeds and scale is ScoreScale.SIGMOID:
        raise UnsupportedError(
            "the model scores by similarity, which has no sigmoid",
            field="score_scale",
            metadata={"label": "missing_scale"},
        )
    if request.instruction:
        raise UnsupportedError(
            "the model takes no instruction",
            field="instruction",
            metadata={"label": "missing_instruction"},
        )
    max_tokens = 0
    if request.max_tokens_per_document:
        max_tokens = read_max_tokens(
            request.max_tokens_per_document,
            limit=properties.max_tokens,
            # The special tokens of a pair do not count towards the document.
            special_tokens=loaded.embedder.tokenizer.special_token_count if loaded.embedder else 0,
            field="max_tokens_per_document",
        )
    # The reference prepends a cross-encoder's default prompt to the query, and no other prompt.
    default_prompt = properties.prompts.get(properties.default_prompt_name, "")
    return RerankSpec(
        scale=scale,
        truncation=read_truncation(
            request.truncation, default=served.default_truncation, field="truncation"
        ),
        max_tokens=max_tokens,
        query_prompt=prompt_for(common_pb2.INPUT_TYPE_QUERY, properties)
        if embeds
        else default_prompt,
        document_prompt=prompt_for(common_pb2.INPUT_TYPE_DOCUMENT, properties) if embeds else "",
    )


def _pack(
    request: rerank_service_pb2.RerankRequest,
    served: ServedModel,
    loaded: LoadedModel,
    ranking: Ranking,
    count: int,
) -> rerank_service_pb2.RerankResponse:
    """Build a response of the best documents."""
    rows = zip(
        ranking.indices[:count].tolist(),
        ranking.scores[:count].tolist(),
        ranking.truncated[:count].tolist(),
        strict=True,
    )
    return rerank_service_pb2.RerankResponse(
        results=[
            rerank_service_pb2.RankedDocument(
                index=index,
                score=score,
                document=request.documents[index] if request.return_documents else "",
                truncated=truncated,
            )
            for index, score, truncated in rows
        ],
        model=served.id,
        revision=loaded.revision,
        fingerprint=loaded.fingerprint,
        usage=common_pb2.Usage(
            input_tokens=ranking.input_tokens, truncated_inputs=ranking.truncated_inputs
        ),
    )
