"""Embeddings and a reranker for LangChain."""

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.load import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.integrations.connection import Connection, connection_to
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE
from embedgrpc.client.integrations.ranker import Ranker

_SCORE_FIELD = "relevance_score"


class _Served(Serializable):
    """The settings of a served model.

    Attributes:
        target: The address of the server: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        api_key: The API key of the caller; by default that of the environment variable
            EMBEDGRPC_API_KEY. `langchain_core.load.dumps` leaves it out.
        client_settings: Other arguments of `embedgrpc.client.Client`, such as `timeout_s`, `tls`
            and `ca_file`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = DEFAULT_TARGET
    model: str = ""
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(API_KEY_VARIABLE, default=None)
    )
    client_settings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: `dumps` writes all settings but the key."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The secrets, and the names under which they are loaded."""
        return {"api_key": API_KEY_VARIABLE}

    def _connection(self) -> Connection:
        key = None if self.api_key is None else self.api_key.get_secret_value
        return connection_to(self.target, self.client_settings, api_key=key)


class EmbedGrpcEmbeddings(_Served, Embeddings):
    """Embeddings of a served model, for any number of texts.

    Documents get the model's prompt for documents, queries that for queries.

    Attributes:
        options: Options of `embedgrpc.client` for all texts, such as `dimensions` and `truncation`:
            see `EmbedOptions`.
        query_options: Those that differ for queries.
    """

    options: dict[str, Any] = Field(default_factory=dict)
    query_options: dict[str, Any] = Field(default_factory=dict)
    _embedder: Embedder = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        """Check the settings; connect later."""
        self._embedder = Embedder(
            self._connection(),
            model=self.model,
            options=self.options,
            query_options=self.query_options,
        )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Raises:
            EncodeError: Documents failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        vectors: list[list[float]] = self._embedder.embed_documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Raises:
            EmbedGrpcError: The call failed.
        """
        vector: list[float] = self._embedder.embed_query(text).tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents: see `embed_documents`."""
        vectors: list[list[float]] = (await self._embedder.embed_documents_async(texts)).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query: see `embed_query`."""
        vector: list[float] = (await self._embedder.embed_query_async(text)).tolist()
        return vector


class EmbedGrpcReranker(_Served, BaseDocumentCompressor):
    """A document compressor that keeps the most relevant of any number of documents.

    They come back best first, as copies with their score in the metadata as `relevance_score`.

    Attributes:
        top_n: The limit of documents to return; None for all.
        options: Options of `embedgrpc.client`: see `RerankOptions`.
    """

    top_n: int | None = 3
    options: dict[str, Any] = Field(default_factory=dict)
    _ranker: Ranker = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        """Check the settings; connect later."""
        self._ranker = Ranker(self._connection(), model=self.model, options=self.options)

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """Return the documents that are most relevant for a query.

        Raises:
            EmbedGrpcError: The call failed, or a document did.
        """
        del callbacks  # a ranking has no steps to tell of
        texts = [document.page_content for document in documents]
        return _chosen(documents, self._ranker.rank(query, texts, top_k=self.top_n))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """Return the documents that are most relevant: see `compress_documents`."""
        del callbacks
        texts = [document.page_content for document in documents]
        return _chosen(documents, await self._ranker.rank_async(query, texts, top_k=self.top_n))


def _chosen(documents: Sequence[Document], ranked: Sequence[tuple[int, float]]) -> list[Document]:
    return [
        documents[index].model_copy(
            update={"metadata": {**documents[index].metadata, _SCORE_FIELD: score}}
        )
        for index, score in ranked
    ]
