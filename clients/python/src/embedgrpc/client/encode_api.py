"""The methods that work as those of sentence-transformers' models do."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Unpack

from embedgrpc.client.defaults import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_READY_TIMEOUT_S,
    DEFAULT_RECONNECT_S,
)
from embedgrpc.client.options import EmbedOptions, RerankOptions


class EncodeApi(ABC):
    """Methods of `Client`; those of `AsyncClient` are the same, to be awaited."""

    @abstractmethod
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
    ) -> NDArray[Any] | Awaitable[NDArray[Any]]:
        """Embed any number of texts; return one array.

        Args:
            texts: The texts, or one str.
            model: The id or an alias of a model; "" for the server's default.
            show_progress_bar: Whether to show progress on standard error: a bar on a terminal, a
                line every ten seconds elsewhere.
            batch_size: As in `embed_stream`.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            reconnect_s: As in `embed_stream`.
            options: See `EmbedOptions`; only those of dense vectors.

        Returns:
            [texts, dimensions], in the order of the texts; one vector [dimensions] for one str. Its
            type is that of `Embeddings.vectors`: float32, raw int8 for "int8" (`embed` has the
            scales, too), and uint8 sign bits for "ubinary".

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def encode_query(
        self, texts: str | Iterable[str], **options: Any
    ) -> NDArray[Any] | Awaitable[NDArray[Any]]:
        """Encode queries: `encode` with the model's prompt for them, unless you name a prompt."""

    @abstractmethod
    def encode_document(
        self, texts: str | Iterable[str], **options: Any
    ) -> NDArray[Any] | Awaitable[NDArray[Any]]:
        """Encode documents: `encode` with the model's prompt for them, unless you name a prompt."""

    @abstractmethod
    def similarity(
        self,
        left: ArrayLike,
        right: ArrayLike,
        *,
        function: str = "",
        model: str = "",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32] | Awaitable[NDArray[np.float32]]:
        """Compare every vector of one array with every vector of another.

        Args:
            left: [n, dimensions], or one vector. uint8 arrays hold sign bits.
            right: [m, dimensions], or one vector.
            function: "cosine", "dot", "euclidean" or "manhattan"; "" for that of the model, which
                the client asks for once.
            model: The model of the vectors; "" for the server's default.
            timeout_s: The deadline in seconds; None for the client's.

        Returns:
            float32 [n, m]; higher is more similar. Distances have a minus sign.

        Raises:
            EmbedGrpcError: The call failed.
            ValueError: The dimensions differ, there is no such function, or the model compares
                multi-vectors.
        """

    @abstractmethod
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[dict[str, Any]] | Awaitable[list[dict[str, Any]]]:
        """Rank any number of documents by their relevance for a query.

        Args:
            query: The query.
            documents: The documents.
            top_k: The limit of documents to return; None for all.
            model: The id or an alias of a model; "" for the server's default.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            options: See `RerankOptions`; not `top_n`. With `return_documents`, the documents come
                back as "text".

        Returns:
            A dict for each document, best first: "corpus_id" is its position, "score" its score.

        Raises:
            EmbedGrpcError: The call failed, or a document did.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def wait_until_ready(
        self, timeout_s: float = DEFAULT_READY_TIMEOUT_S, *, model: str = ""
    ) -> Awaitable[None] | None:
        """Wait until the server can answer, also if it does not run yet.

        Args:
            timeout_s: The longest wait, in seconds.
            model: Wait for this model; "" for any.

        Raises:
            DeadlineExpiredError: The server is not ready in time; the error says why.
            EmbedGrpcError: The server will not be ready for this client: it does not know the
                caller, for instance.
        """
