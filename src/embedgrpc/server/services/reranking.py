"""RerankService: reads requests, runs them, and writes responses in wire form."""

from typing import Any

from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.server.services.ranking_wire import ranking_wire
from embedgrpc.server.services.rerank_stream import RerankStream
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import rerank_service_pb2, rerank_service_pb2_grpc


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
            context,
            WorkClass.INTERACTIVE,
            self._settings,
            priority=request.options.priority,
            field="options.priority",
            max_s=self._settings.max_unary_s,
        )
        batch = RankBatch(
            self._catalog.find(request.model),
            request.query,
            request.documents,
            request.options,
            size_bytes=request.ByteSize(),
            max_response_bytes=client_response_bytes(context, request.max_response_bytes),
            request_model=request.model,
            allow_partial=request.allow_partial,
        )
        return await rank_batch(batch, call, self._settings, pack=_pack)

    async def StreamRerank(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Rank the documents of many queries; a query that fails does not end the stream."""
        stream = RerankStream(self._catalog, self._settings, request_iterator, context)
        with self._open_streams.watch(stream.bidi):
            await stream.run()


def _pack(ranked: RankedBatch) -> bytes:
    """Return a `RerankResponse` in wire form."""
    loaded = ranked.ranker.loaded
    response = rerank_service_pb2.RerankResponse(
        model=ranked.ranker.served.id, revision=loaded.revision, fingerprint=loaded.fingerprint
    )
    ranking, _ = ranking_wire(ranked)
    # The fields of `Ranking` are the first of `RerankResponse`, with the same numbers.
    return ranking + response.SerializeToString()
