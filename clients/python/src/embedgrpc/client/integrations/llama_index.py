"""Embeddings, sparse embeddings and a reranker for LlamaIndex."""

from typing import Any, Final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.integrations.connection import Connection, connection_to
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.ranker import Ranker
from embedgrpc.client.suggestions import unknown_argument_error
from embedgrpc.client.vectors import SparseVector

_dispatcher = get_dispatcher(__name__)

# LlamaIndex's largest: the client makes the messages of the right size.
_BATCH_SIZE: Final = 2048


class _Served(BaseModel):
    """The settings of a served model.

    Attributes:
        target: The address of the server: HOST:PORT or unix:PATH.
        api_key: The API key of the caller; None for that of the environment variable
            EMBEDGRPC_API_KEY, if it is set. `to_dict` leaves it out.
        client_settings: Other arguments of `embedgrpc.client.Client`, such as `timeout_s`, `tls`
            and `ca_file`.
        options: Options of `embedgrpc.client`: see `EmbedOptions`, and `RerankOptions` for the
            reranker.
    """

    target: str = Field(default=DEFAULT_TARGET, frozen=True)
    api_key: SecretStr | None = Field(default=None, exclude=True, frozen=True)
    client_settings: dict[str, Any] = Field(default_factory=dict, frozen=True)
    options: dict[str, Any] = Field(default_factory=dict, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _require_known(cls, settings: Any) -> Any:
        """Raise TypeError for a setting that is none: LlamaIndex would pass over a misspelt one."""
        # `to_dict` writes the name of the class, too.
        unknown = [name for name in settings if name not in (*cls.model_fields, "class_name")]
        if unknown:
            raise unknown_argument_error(cls.__name__, unknown, list(cls.model_fields))
        return settings

    def _connection(self) -> Connection:
        key = None if self.api_key is None else self.api_key.get_secret_value
        return connection_to(self.target, self.client_settings, api_key=key)


class EmbedGrpcEmbedding(_Served, BaseEmbedding):
    """Embeddings of a served model, for any number of texts.

    Texts get the model's prompt for documents, queries that for queries.

    Attributes:
        model_name: The id or an alias of the model; "" for the server's default.
        query_options: Options that differ for queries.
    """

    model_name: str = Field(default="", frozen=True)
    embed_batch_size: int = Field(default=_BATCH_SIZE, gt=0, le=_BATCH_SIZE)
    query_options: dict[str, Any] = Field(default_factory=dict, frozen=True)
    _embedder: Embedder = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Check the settings; connect later."""
        super().model_post_init(context)
        self._embedder = Embedder(
            self._connection(),
            model=self.model_name,
            options=self.options,
            query_options=self.query_options,
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name in serialized settings."""
        return cls.__name__

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.embed_query(query).tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = (await self._embedder.embed_query_async(query)).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = self._embedder.embed_document(text).tolist()
        return vector

    async def _aget_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = (await self._embedder.embed_document_async(text)).tolist()
        return vector

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed_documents(texts).tolist()
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = (await self._embedder.embed_documents_async(texts)).tolist()
        return vectors


class EmbedGrpcSparseEmbedding(_Served, BaseSparseEmbedding):
    """Sparse embeddings of a served model, for any number of texts: weights by vocabulary id.

    Attributes:
        model_name: The id or an alias of the model; "" for the server's default.
        query_options: Options that differ for queries.
    """

    model_name: str = Field(default="", frozen=True)
    embed_batch_size: int = Field(default=_BATCH_SIZE, gt=0, le=_BATCH_SIZE)
    query_options: dict[str, Any] = Field(default_factory=dict, frozen=True)
    _embedder: Embedder = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Check the settings; connect later."""
        super().model_post_init(context)
        self._embedder = Embedder(
            self._connection(),
            model=self.model_name,
            options=self.options,
            query_options=self.query_options,
            is_sparse=True,
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name in serialized settings."""
        return cls.__name__

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return _weights(self._embedder.sparse_query(query))

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return _weights(await self._embedder.sparse_query_async(query))

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [_weights(one) for one in self._embedder.sparse_documents(texts)]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [_weights(one) for one in await self._embedder.sparse_documents_async(texts)]


class EmbedGrpcRerank(_Served, BaseNodePostprocessor):
    """A postprocessor that keeps the most relevant of any number of nodes, best first.

    It reads what LlamaIndex embeds: the text of a node, and its metadata for embedding.

    Attributes:
        model: The id or an alias of the model; "" for the server's default.
        top_n: The limit of nodes to return.
    """

    model: str = Field(default="", frozen=True)
    top_n: int = Field(default=3, gt=0)
    _ranker: Ranker = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Check the settings; connect later."""
        super().model_post_init(context)
        self._ranker = Ranker(self._connection(), model=self.model, options=self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name in serialized settings."""
        return cls.__name__

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._begin(nodes, query_bundle)
        return _end(nodes, self._ranker.rank(query, _texts(nodes), top_k=self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._begin(nodes, query_bundle)
        return _end(nodes, await self._ranker.rank_async(query, _texts(nodes), top_k=self.top_n))

    def _begin(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> str:
        if query_bundle is None:
            raise ValueError("a query is missing: pass query_bundle or query_str")
        _dispatcher.event(
            ReRankStartEvent(
                query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model
            )
        )
        query: str = query_bundle.query_str
        return query


def _weights(vector: SparseVector) -> dict[int, float]:
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _end(nodes: list[NodeWithScore], ranked: list[tuple[int, float]]) -> list[NodeWithScore]:
    chosen = [NodeWithScore(node=nodes[index].node, score=score) for index, score in ranked]
    _dispatcher.event(ReRankEndEvent(nodes=chosen))
    return chosen
