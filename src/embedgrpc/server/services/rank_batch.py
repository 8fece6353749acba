"""Ranks the documents of one unary call, for every protocol that the server speaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedgrpc.engine.work import Call
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.services.ranker import Packed, RankedBatch, Ranker
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import rerank_service_pb2


@dataclass(frozen=True, slots=True)
class RankBatch:
    """The query and the documents of one unary call, and how to rank them.

    Attributes:
        served: The model.
        query: The query.
        documents: The documents. Each is read only when it is needed.
        options: How to rank them.
        size_bytes: An upper bound of the documents' size in UTF-8.
        max_response_bytes: The largest response that the client accepts.
        request_model: The name of the model in the request; may be empty.
        allow_partial: Whether documents that fail leave the others unaffected.
        response_copies: The size of the response, in units of its protobuf form.
        options_field: The field of the request that holds the options, for errors.
    """

    served: ServedModel
    query: str
    documents: Sequence[str]
    options: rerank_service_pb2.RerankOptions
    size_bytes: int
    max_response_bytes: int
    request_model: str = ""
    allow_partial: bool = False
    response_copies: float = 1.0
    options_field: str = "options"


async def rank_batch(
    batch: RankBatch,
    call: Call,
    settings: Settings,
    *,
    pack: Callable[[RankedBatch], Packed],
) -> Packed:
    """Check a request, rank its documents, and pack the response.

    Args:
        batch: The request.
        call: For whom.
        settings: The server's settings.
        pack: Makes the response. Called off the event loop if that takes long.

    Raises:
        EngineError: A rule is broken, the model cannot do it, or there is no room or time for it.
    """
    served = batch.served
    note_inputs(len(batch.documents))
    limit = min(settings.max_response_bytes, batch.max_response_bytes)
    ranker = Ranker.of(
        served,
        batch.options,
        partial=batch.allow_partial,
        max_inputs=settings.max_inputs,
        max_response_bytes=int(limit / batch.response_copies),
        field=batch.options_field,
    )
    bound = ranker.bound_response(len(batch.documents), batch.size_bytes)
    await reserve_response(int(bound * batch.response_copies))
    describe_call(
        operation="rerank",
        request_model=batch.request_model or served.id,
        response_model=served.id,
    )

    def finish(ranked: RankedBatch) -> tuple[Packed, int, int]:
        return pack(ranked), ranked.ranking.input_tokens, len(ranked.ranking.failures)

    answer, input_tokens, failed = await ranker.rank(
        batch.query, batch.documents, call, size_bytes=batch.size_bytes, pack=finish
    )
    note_failed_inputs(failed)
    describe_call(input_tokens=input_tokens)
    return answer
