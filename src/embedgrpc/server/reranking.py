"""RerankService: validates and unpacks requests, packs answers."""

import asyncio
from collections import deque
from typing import Any

from embedgrpc.engine.errors import EngineError, UnsupportedError
from embedgrpc.engine.reranking import Ranking, RerankSpec, ScoreScale
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.metadata import Kind
from embedgrpc.server.catalog import Catalog, LoadedModel, ServedModel
from embedgrpc.server.checks import (
    check_count,
    check_enum,
    check_id,
    check_not_negative,
    check_response_size,
)
from embedgrpc.server.draining import Draining
from embedgrpc.server.errors import item_error
from embedgrpc.server.exchange import Exchange
from embedgrpc.server.guard import is_cancelled, log_fault, stray_cancellation
from embedgrpc.server.open_calls import reserve_answer
from embedgrpc.server.requests import (
    begin_call,
    client_response_bytes,
    prompt_for,
    read_max_tokens,
    read_truncation,
)
from embedgrpc.server.settings import Settings
from embedgrpc.server.tracing import describe_call
from embedgrpc.v1 import common_pb2, rerank_service_pb2, rerank_service_pb2_grpc

_SCALES: dict[int, ScoreScale] = {
    rerank_service_pb2.SCORE_SCALE_UNSPECIFIED: ScoreScale.MODEL,
    rerank_service_pb2.SCORE_SCALE_RAW: ScoreScale.RAW,
    rerank_service_pb2.SCORE_SCALE_SIGMOID: ScoreScale.SIGMOID,
}
# Index, score, flag and keys of one document, without its text.
_RESULT_BYTES = 24


class RerankService(rerank_service_pb2_grpc.RerankServiceServicer):
    """Serves Rerank and StreamRerank.

    Args:
        catalog: The models.
        settings: The limits.
        draining: Knows the streams that are open.
    """

    def __init__(self, catalog: Catalog, settings: Settings, draining: Draining) -> None:
        self._catalog = catalog
        self._settings = settings
        self._draining = draining

    async def Rerank(  # noqa: N802 - the contract's name
        self, request: rerank_service_pb2.RerankRequest, context: Any
    ) -> rerank_service_pb2.RerankResponse:
        """Scores the documents of one query and returns them best first."""
        call = begin_call(
            context, WorkClass.INTERACTIVE, self._settings, max_s=self._settings.max_unary_s
        )
        await reserve_answer(_answer_bytes(request, max_inputs=self._settings.max_inputs))
        response = await self._rerank(request, call, client_response_bytes(context))
        describe_call(input_tokens=response.usage.input_tokens)
        return response

    async def StreamRerank(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Reranks many queries; one that fails does not end the stream."""
        exchange: Exchange[tuple[rerank_service_pb2.StreamRerankResponse, int]] = Exchange(
            context, request_iterator, idle_timeout_s=self._settings.stream_idle_timeout_s
        )
        exchange.set_window(self._settings.max_stream_in_flight_inputs)
        call = begin_call(context, WorkClass.BULK, self._settings)
        limit = client_response_bytes(context)
        ids: set[str] = set()
        tasks: set[asyncio.Task[None]] = set()
        input_tokens = 0

        async def answer(request: rerank_service_pb2.StreamRerankRequest, inputs: int) -> None:
            response = rerank_service_pb2.StreamRerankResponse(id=request.id)
            try:
                response.response.CopyFrom(await self._rerank(request.request, call, limit))
            except EngineError as error:
                response.error.CopyFrom(item_error(error))
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                response.error.CopyFrom(item_error(stray_cancellation("StreamRerank")))
            except Exception as error:  # noqa: BLE001 - a stream waits for every answer
                fault = EngineError.fault()
                log_fault(error, fault, method="StreamRerank")
                response.error.CopyFrom(item_error(fault))
            exchange.answer((response, inputs))

        async def read() -> None:
            async for request in exchange.receive():
                check_id(request.id, ids, field="id")
                ids.add(request.id)
                inputs = max(len(request.request.documents), 1)
                await exchange.take(
                    inputs,
                    answer_bytes=_answer_bytes(
                        request.request, max_inputs=self._settings.max_inputs
                    ),
                )
                task = asyncio.create_task(answer(request, inputs))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        def pack(
            outbox: deque[tuple[rerank_service_pb2.StreamRerankResponse, int]],
        ) -> tuple[Any, int]:
            nonlocal input_tokens
            response, inputs = outbox.popleft()
            ids.discard(response.id)
            input_tokens += response.response.usage.input_tokens
            return response, inputs

        with self._draining.watch(exchange):
            try:
                await exchange.run(read, pack)
            finally:
                describe_call(input_tokens=input_tokens)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _rerank(
        self, request: rerank_service_pb2.RerankRequest, call: Call, max_response_bytes: int
    ) -> rerank_service_pb2.RerankResponse:
        served = self._catalog.find(request.model)
        loaded, reranker = served.reranker()
        documents = request.documents
        check_count(len(documents), limit=self._settings.max_inputs, field="documents")
        check_not_negative(request.top_n, field="top_n")
        spec = _read_spec(request, served, loaded)
        count = min(request.top_n or len(documents), len(documents))
        size = count * _RESULT_BYTES
        if request.return_documents:
            # Which ones are returned is not known yet: perhaps the largest.
            sizes = sorted((len(document.encode()) for document in documents), reverse=True)
            size += sum(sizes[:count])
        check_response_size(size, limit=min(self._settings.max_response_bytes, max_response_bytes))
        describe_call(
            operation="rerank", request_model=request.model or served.id, response_model=served.id
        )
        ranking = await reranker.rerank(request.query, documents, spec, call)
        return _pack(request, served, loaded, ranking, count)


def _answer_bytes(request: rerank_service_pb2.RerankRequest, *, max_inputs: int) -> int:
    """Bound the bytes of an answer before anything is looked at."""
    documents = request.ByteSize() if request.return_documents else 0
    return min(len(request.documents), max_inputs) * _RESULT_BYTES + documents


def _read_spec(
    request: rerank_service_pb2.RerankRequest, served: ServedModel, loaded: LoadedModel
) -> RerankSpec:
    """Reads how documents are to be scored."""
    metadata = loaded.metadata
    check_enum(rerank_service_pb2.ScoreScale, request.score_scale, field="score_scale")
    scale = _SCALES[request.score_scale]
    embeds = metadata.kind is Kind.EMBEDDING
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
            limit=metadata.max_tokens,
            # A pair's special tokens do not count towards the document.
            special_tokens=loaded.embedder.tokenizer.special_token_count if loaded.embedder else 0,
            field="max_tokens_per_document",
        )
    # The reference puts a cross-encoder's default prompt in front of the query, and no other.
    default_prompt = metadata.prompts.get(metadata.default_prompt_name, "")
    return RerankSpec(
        scale=scale,
        truncation=read_truncation(
            request.truncation, default=served.default_truncation, field="truncation"
        ),
        max_tokens=max_tokens,
        query_prompt=prompt_for(common_pb2.INPUT_TYPE_QUERY, metadata)
        if embeds
        else default_prompt,
        document_prompt=prompt_for(common_pb2.INPUT_TYPE_DOCUMENT, metadata) if embeds else "",
    )


def _pack(
    request: rerank_service_pb2.RerankRequest,
    served: ServedModel,
    loaded: LoadedModel,
    ranking: Ranking,
    count: int,
) -> rerank_service_pb2.RerankResponse:
    """Packs the best documents."""
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
