"""The methods of `Client` that work as those of sentence-transformers' models do."""

import time
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Unpack

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
from embedgrpc.client.stream import EmbedStream, RerankStream
from embedgrpc.client.vector_array import VectorArray, for_documents, for_queries, require_dense


class EncodeMethods(ClientApi):
    """See `EncodeApi`."""

    def encode(
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
            return cast("Embeddings", one)[0]
        array = VectorArray(texts, show_progress_bar=show_progress_bar)
        stream = cast(
            "EmbedStream",
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
        with stream, array:
            array.begin(stream.ready())
            for result in stream:
                array.add(result)
        return array.vectors()

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> NDArray[Any]:
        return self.encode(texts, **for_queries(options))

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> NDArray[Any]:
        return self.encode(texts, **for_documents(options))

    def similarity(
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
                server = cast("Server", self.get_server(timeout_s=timeout_s))
                name = model or server.default_model
                described = cast("Model", self.get_model(name, timeout_s=timeout_s))
                self._similarities[model] = described.similarity
            function = self._similarities[model]
        return similarity(left, right, function)

    def rank(
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
            "RerankStream",
            self.rerank_stream(
                ranking.inputs(),
                model=model,
                timeout_s=timeout_s,
                **ranking.options,
            ),
        )
        with stream:
            ranking.begin(stream.ready())
            for result in stream:
                ranking.add(result)
        return ranking.best()

    def wait_until_ready(
        self, timeout_s: float = DEFAULT_READY_TIMEOUT_S, *, model: str = ""
    ) -> None:
        readiness = Readiness(timeout_s, self._target)
        while not self._is_ready(readiness, model):
            time.sleep(readiness.pause_s())

    def _is_ready(self, readiness: Readiness, model: str) -> bool:
        try:
            if model:
                described = cast("Model", self.get_model(model, timeout_s=readiness.left_s()))
                readiness.note(f"the model is {described.state}")
                return described.state == "ready"
            for service in READY_SERVICES:
                status = str(self.health(service, timeout_s=readiness.left_s()))
                readiness.note(f"{service} is {status}")
                if status == "SERVING":
                    return True
        except EmbedGrpcError as error:
            readiness.note_error(error)
        return False
