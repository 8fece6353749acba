"""RerankService: reads requests, runs them, and writes responses in wire form."""

from typing import Any

from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.ranker import Ranker
from embedgrpc.server.services.rerank_stream import RerankStream
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
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
        served = self._catalog.find(request.model)
        accepted = client_response_bytes(context, request.max_response_bytes)
        ranker = Ranker.of(
            served,
            request.options,
            partial=request.allow_partial,
            max_inputs=self._settings.max_inputs,
            max_response_bytes=min(self._settings.max_response_bytes, accepted),
            field="options",
        )
        documents, size_bytes = request.documents, request.ByteSize()
        await reserve_response(ranker.bound_response(len(documents), size_bytes))
        describe_call(
            operation="rerank", request_model=request.model or served.id, response_model=served.id
        )
        ranking, usage = await ranker.rank(request.query, documents, call, size_bytes=size_bytes)
        describe_call(input_tokens=usage.input_tokens)
        response = rerank_service_pb2.RerankResponse(
            model=served.id, revision=ranker.loaded.revision, fingerprint=ranker.loaded.fingerprint
        )
        # The fields of `Ranking` are the first of `RerankResponse`, with the same numbers.
        return ranking + response.SerializeToString()

    async def StreamRerank(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Rank the documents of many queries; a query that fails does not end the stream."""
        stream = RerankStream(self._catalog, self._settings, request_iterator, context)
        with self._open_streams.watch(stream.bidi):
            await stream.run()
