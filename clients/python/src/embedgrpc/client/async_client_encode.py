"""The methods of `AsyncClient` that work as those of sentence-transformers' models do."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Unpack

from embedgrpc.client.async_stream import AsyncEmbedStream, AsyncRerankStream
from embedgrpc.client.client_api import ClientApi
from embedgrpc.client.defaults import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_READY_TIMEOUT_S,
    DEFAULT_RECONNECT_S,
)
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.long_ranking import LongRanking
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.readiness import READY_SERVICES, Readiness
from embedgrpc.client.result_types import Embeddings
from embedgrpc.client.server_description import Server
from embedgrpc.client.similarity import similarity
from embedgrpc.client.unary_calls import HealthStatus
from embedgrpc.client.vector_array import VectorArray, for_documents, for_queries, require_dense


class AsyncEncodeMethods(ClientApi):
    """See `EncodeApi`."""

    async def encode(
        self,
        texts: str | Iterable[str],
        *,
        model: str = "",
        show_progress_bar: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[Any]:
        require_dense(options)
        if isinstance(texts, str):
            one = self.embed([texts], model=model, timeout_s=timeout_s, **options)
            return (await cast("Awaitable[Embeddings]", one))[0]
        array = VectorArray(texts, show_progress_bar=show_progress_bar)
        stream = cast(
            "AsyncEmbedStream",
            self.embed_stream(
                array.inputs(),
                model=model,
                order="completion",
                batch_size=batch_size,
                timeout_s=timeout_s,
                reconnect_s=reconnect_s,
                **options,
            ),
        )
        async with stream:
            with array:
                array.begin(await stream.ready())
                async for result in stream:
                    array.add(result)
        return array.vectors()

    async def encode_query(self, texts: str | Iterable[str], **options: Any) -> NDArray[Any]:
        return await self.encode(texts, **for_queries(options))

    async def encode_document(self, texts: str | Iterable[str], **options: Any) -> NDArray[Any]:
        return await self.encode(texts, **for_documents(options))

    async def similarity(
        self,
        left: ArrayLike,
        right: ArrayLike,
        *,
        function: str = "",
        model: str = "",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        if not function:
            if model not in self._similarities:
                server = await cast("Awaitable[Server]", self.get_server(timeout_s=timeout_s))
                asked = self.get_model(model or server.default_model, timeout_s=timeout_s)
                described = await cast("Awaitable[Model]", asked)
                self._similarities[model] = described.similarity
            function = self._similarities[model]
        return similarity(left, right, function)

    async def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[dict[str, Any]]:
        ranking = LongRanking(query, documents, top_k=top_k, **options)
        stream = cast(
            "AsyncRerankStream",
            self.rerank_stream(
                ranking.inputs(),
                model=model,
                timeout_s=timeout_s,
                **ranking.options,
            ),
        )
        async with stream:
            ranking.begin(await stream.ready())
            async for result in stream:
                ranking.add(result)
        return ranking.best()

    async def wait_until_ready(
        self, timeout_s: float = DEFAULT_READY_TIMEOUT_S, *, model: str = ""
    ) -> None:
        readiness = Readiness(timeout_s, self._target)
        while not await self._is_ready(readiness, model):  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(readiness.pause_s())

    async def _is_ready(self, readiness: Readiness, model: str) -> bool:
        try:
            if model:
                asked = self.get_model(model, timeout_s=readiness.left_s())
                described = await cast("Awaitable[Model]", asked)
                readiness.note(f"the model is {described.state}")
                return described.state == "ready"
            for service in READY_SERVICES:
                checked = self.health(service, timeout_s=readiness.left_s())
                status = str(await cast("Awaitable[HealthStatus]", checked))
                readiness.note(f"{service} is {status}")
                if status == "SERVING":
                    return True
        except EmbedGrpcError as error:
            readiness.note_error(error)
        return False
