"""The services of tei.v1: which method is answered how."""

from typing import Any

import grpc.aio

from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.tei import embedding, prediction, ranking, tokenizing
from embedgrpc.server.tei.facade import Facade
from embedgrpc.server.tei.information import describe_model
from embedgrpc.tei.v1 import tei_pb2, tei_pb2_grpc


class _Service:
    def __init__(self, facade: Facade) -> None:
        self._facade = facade


class InfoService(_Service, tei_pb2_grpc.InfoServicer):
    """Serves Info."""

    async def Info(self, request: tei_pb2.InfoRequest, context: Any) -> tei_pb2.InfoResponse:  # noqa: N802 - the contract's name
        """Describe the model."""
        del request
        return describe_model(self._facade.model_of(context), self._facade.settings)


class EmbedService(_Service, tei_pb2_grpc.EmbedServicer):
    """Serves Embed, EmbedSparse and EmbedAll, and their streams."""

    async def Embed(self, request: tei_pb2.EmbedRequest, context: Any) -> bytes:  # noqa: N802
        """Embed a text."""
        return await self._facade.answer(request, context, embedding.prepare_dense)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Embed a stream of texts."""
        await self._facade.stream(request_iterator, context, embedding.prepare_dense)

    async def EmbedSparse(self, request: tei_pb2.EmbedSparseRequest, context: Any) -> bytes:  # noqa: N802
        """Embed a text as a sparse vector."""
        return await self._facade.answer(request, context, embedding.prepare_sparse)

    async def EmbedSparseStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Embed a stream of texts as sparse vectors."""
        await self._facade.stream(request_iterator, context, embedding.prepare_sparse)

    async def EmbedAll(self, request: tei_pb2.EmbedAllRequest, context: Any) -> bytes:  # noqa: N802
        """Return a vector for each token of a text."""
        return await self._facade.answer(request, context, embedding.prepare_tokens)

    async def EmbedAllStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Return a vector for each token of each text of a stream."""
        await self._facade.stream(request_iterator, context, embedding.prepare_tokens)


class PredictService(_Service, tei_pb2_grpc.PredictServicer):
    """Serves Predict and PredictPair, and their streams."""

    async def Predict(self, request: tei_pb2.PredictRequest, context: Any) -> bytes:  # noqa: N802
        """Classify a text."""
        return await self._facade.answer(request, context, prediction.prepare_text)

    async def PredictPair(self, request: tei_pb2.PredictPairRequest, context: Any) -> bytes:  # noqa: N802
        """Classify a pair of texts."""
        return await self._facade.answer(request, context, prediction.prepare_pair)

    async def PredictStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Classify a stream of texts."""
        await self._facade.stream(request_iterator, context, prediction.prepare_text)

    async def PredictPairStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Classify a stream of pairs of texts."""
        await self._facade.stream(request_iterator, context, prediction.prepare_pair)


class RerankService(_Service, tei_pb2_grpc.RerankServicer):
    """Serves Rerank and RerankStream."""

    async def Rerank(self, request: tei_pb2.RerankRequest, context: Any) -> bytes:  # noqa: N802
        """Rank texts."""
        return await self._facade.answer(request, context, ranking.prepare_ranking)

    async def RerankStream(self, request_iterator: Any, context: Any) -> bytes:  # noqa: N802
        """Rank the texts of a stream."""
        return await self._facade.answer_ranking(request_iterator, context)


class TokenizeService(_Service, tei_pb2_grpc.TokenizeServicer):
    """Serves Tokenize and Decode, and their streams."""

    async def Tokenize(self, request: tei_pb2.EncodeRequest, context: Any) -> bytes:  # noqa: N802
        """Tokenize a text."""
        return await self._facade.answer(request, context, tokenizing.prepare_tokens)

    async def TokenizeStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Tokenize a stream of texts."""
        await self._facade.stream(request_iterator, context, tokenizing.prepare_tokens)

    async def Decode(self, request: tei_pb2.DecodeRequest, context: Any) -> bytes:  # noqa: N802
        """Turn tokens into text."""
        return await self._facade.answer(request, context, tokenizing.prepare_text)

    async def DecodeStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Turn a stream of tokens into texts."""
        await self._facade.stream(request_iterator, context, tokenizing.prepare_text)


def add_tei(
    server: grpc.aio.Server, catalog: Catalog, settings: Settings, open_streams: OpenStreams
) -> None:
    """Add the services of tei.v1 to a server."""
    facade = Facade(catalog, settings, open_streams)
    for add, servicer in (
        (tei_pb2_grpc.add_InfoServicer_to_server, InfoService(facade)),
        (tei_pb2_grpc.add_EmbedServicer_to_server, EmbedService(facade)),
        (tei_pb2_grpc.add_PredictServicer_to_server, PredictService(facade)),
        (tei_pb2_grpc.add_RerankServicer_to_server, RerankService(facade)),
        (tei_pb2_grpc.add_TokenizeServicer_to_server, TokenizeService(facade)),
    ):
        add(servicer, server)  # type: ignore[no-untyped-call]  # generated
