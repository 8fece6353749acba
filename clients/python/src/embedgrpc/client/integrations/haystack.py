"""Embedders, sparse embedders and a ranker for Haystack."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import SparseEmbedding
from haystack.utils import Secret
from typing_extensions import Never, Self

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.integrations.connection import connection_to
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.ranker import Ranker
from embedgrpc.client.suggestions import unknown_argument_error
from embedgrpc.client.vectors import SparseVector

_DEFAULT_TOP_K: Final = 10
_SETTINGS: Final = ("target", "model", "api_key", "client_settings", "options")
_DOCUMENT_SETTINGS: Final = (*_SETTINGS, "meta_fields_to_embed", "embedding_separator")


class _Served:
    """The settings of a served model, and what all components do with them.

    Args:
        target: The address of the server: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        api_key: The API key of the caller; None for that of the environment variable
            EMBEDGRPC_API_KEY, if it is set.
        client_settings: Other arguments of `embedgrpc.client.Client`, such as `timeout_s`, `tls`
            and `ca_file`.
        options: Options of `embedgrpc.client`: see `EmbedOptions`, and `RerankOptions` for the
            ranker.
        unknown: Nothing; any other argument is an error.

    Raises:
        TypeError: There is no such setting, or one has the wrong type.
        ValueError: A setting is out of range.
    """

    _written: ClassVar[tuple[str, ...]] = _SETTINGS

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        api_key: Secret | None = None,
        client_settings: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unknown_argument_error(type(self).__name__, unknown, self._written)
        self.target = target
        self.model = model
        self.api_key = api_key
        self.client_settings = dict(client_settings or {})
        self.options = dict(options or {})
        key = None if api_key is None else api_key.resolve_value
        self._connection = connection_to(target, self.client_settings, api_key=key)
        self._prepare()

    def _prepare(self) -> None:
        """Make what runs the model."""
        self._embedder = Embedder(
            self._connection,
            model=self.model,
            # A component embeds either queries or documents.
            options=self.options,
        )

    def warm_up(self) -> None:
        """Read the key; a missing one fails here."""
        self._connection.client()

    async def warm_up_async(self) -> None:
        """Read the key: see `warm_up`."""
        self._connection.async_client()

    def close(self) -> None:
        """Close the connection; another run opens it again."""
        self._connection.close()

    async def close_async(self) -> None:
        """Close the connection of this event loop; another run opens it again."""
        await self._connection.close_async()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings; a key that was given as such cannot be written.

        Raises:
            ValueError: There is such a key: use `Secret.from_env_var`.
        """
        settings = {name: getattr(self, name) for name in self._written}
        written: dict[str, Any] = default_to_dict(self, **settings)
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a component from what `to_dict` returned."""
        made: Self = default_from_dict(cls, data)
        return made

    def _meta(self) -> dict[str, Any]:
        return {"model": self.model} if self.model else {}


class _ServedForDocuments(_Served):
    """The settings of a served model that reads documents.

    Args:
        target: As in `_Served`, as are the others.
        model: The model.
        api_key: The key.
        client_settings: Arguments of the client.
        options: Options of calls.
        meta_fields_to_embed: Names of metadata whose values go before the text of a document.
        embedding_separator: What stands between them.
        unknown: Nothing; any other argument is an error.
    """

    _written: ClassVar[tuple[str, ...]] = _DOCUMENT_SETTINGS

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        api_key: Secret | None = None,
        client_settings: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        **unknown: Never,
    ) -> None:
        self.meta_fields_to_embed = list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        super().__init__(
            target,
            model=model,
            api_key=api_key,
            client_settings=client_settings,
            options=options,
            **unknown,
        )

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        """Return the text of each document, with the chosen metadata before it."""
        if not isinstance(documents, list) or not all(
            isinstance(document, Document) for document in documents
        ):
            raise TypeError(f"{type(self).__name__} takes a list of Documents")
        return [
            self.embedding_separator.join(
                [
                    *(
                        str(document.meta[name])
                        for name in self.meta_fields_to_embed
                        if document.meta.get(name) is not None
                    ),
                    document.content or "",
                ]
            )
            for document in documents
        ]


@component
class EmbedGrpcTextEmbedder(_Served):
    """Embeds a query with the model's prompt for queries."""

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            `embedding`, and `meta` with the model.

        Raises:
            EmbedGrpcError: The call failed.
        """
        embedding = self._embedder.embed_query(text).tolist()
        return {"embedding": embedding, "meta": self._meta()}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query: see `run`."""
        embedding = (await self._embedder.embed_query_async(text)).tolist()
        return {"embedding": embedding, "meta": self._meta()}


@component
class EmbedGrpcDocumentEmbedder(_ServedForDocuments):
    """Embeds documents, any number of them, with the model's prompt for documents."""

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: The documents.

        Returns:
            `documents`, copies with their `embedding`, and `meta` with the model.

        Raises:
            EncodeError: Documents failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        vectors = self._embedder.embed_documents(self._texts(documents)).tolist()
        return {"documents": _embedded(documents, vectors), "meta": self._meta()}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents: see `run`."""
        vectors = await self._embedder.embed_documents_async(self._texts(documents))
        return {"documents": _embedded(documents, vectors.tolist()), "meta": self._meta()}


@component
class EmbedGrpcSparseTextEmbedder(_Served):
    """Embeds a query as a sparse vector."""

    def _prepare(self) -> None:
        self._embedder = Embedder(
            self._connection, model=self.model, options=self.options, is_sparse=True
        )

    @component.output_types(sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            `sparse_embedding`, and `meta` with the model.

        Raises:
            EmbedGrpcError: The call failed.
        """
        vector = self._embedder.sparse_query(text)
        return {"sparse_embedding": _sparse(vector), "meta": self._meta()}

    @component.output_types(sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query: see `run`."""
        vector = await self._embedder.sparse_query_async(text)
        return {"sparse_embedding": _sparse(vector), "meta": self._meta()}


@component
class EmbedGrpcSparseDocumentEmbedder(_ServedForDocuments):
    """Embeds any number of documents as sparse vectors."""

    def _prepare(self) -> None:
        self._embedder = Embedder(
            self._connection, model=self.model, options=self.options, is_sparse=True
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: The documents.

        Returns:
            `documents`, copies with their `sparse_embedding`, and `meta` with the model.

        Raises:
            EmbedGrpcError: A document failed, or the call did.
        """
        vectors = self._embedder.sparse_documents(self._texts(documents))
        return {"documents": _sparsely_embedded(documents, vectors), "meta": self._meta()}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents: see `run`."""
        vectors = await self._embedder.sparse_documents_async(self._texts(documents))
        return {"documents": _sparsely_embedded(documents, vectors), "meta": self._meta()}


@component
class EmbedGrpcRanker(_ServedForDocuments):
    """Ranks any number of documents by their relevance for a query.

    Args:
        target: As in `_Served`, as are the others.
        model: The model.
        api_key: The key.
        client_settings: Arguments of the client.
        options: Options of calls.
        meta_fields_to_embed: Names of metadata whose values go before the text of a document.
        embedding_separator: What stands between them.
        top_k: The limit of documents to return.
    """

    _written = (*_DOCUMENT_SETTINGS, "top_k")

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        api_key: Secret | None = None,
        client_settings: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        top_k: int = _DEFAULT_TOP_K,
    ) -> None:
        self.top_k = top_k
        # Not `super()`: Haystack makes another class of this one.
        _ServedForDocuments.__init__(
            self,
            target,
            model=model,
            api_key=api_key,
            client_settings=client_settings,
            options=options,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
        )

    def _prepare(self) -> None:
        self._ranker = Ranker(self._connection, model=self.model, options=self.options)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Rank documents.

        Args:
            query: The query.
            documents: The documents.
            top_k: The limit of documents to return; None for that of the component.

        Returns:
            `documents`, copies with their `score`, best first.

        Raises:
            EmbedGrpcError: The call failed, or a document did.
        """
        limit = self.top_k if top_k is None else top_k
        ranked = self._ranker.rank(query, self._texts(documents), top_k=limit)
        return {"documents": _ranked(documents, ranked)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Rank documents: see `run`."""
        limit = self.top_k if top_k is None else top_k
        ranked = await self._ranker.rank_async(query, self._texts(documents), top_k=limit)
        return {"documents": _ranked(documents, ranked)}


def _embedded(documents: Sequence[Document], vectors: Iterable[list[float]]) -> list[Document]:
    pairs = zip(documents, vectors, strict=True)
    return [replace(document, embedding=vector) for document, vector in pairs]


def _sparsely_embedded(
    documents: Sequence[Document], vectors: Iterable[SparseVector]
) -> list[Document]:
    pairs = zip(documents, vectors, strict=True)
    return [replace(document, sparse_embedding=_sparse(vector)) for document, vector in pairs]


def _sparse(vector: SparseVector) -> SparseEmbedding:
    return SparseEmbedding(indices=vector.indices.tolist(), values=vector.values.tolist())


def _ranked(documents: Sequence[Document], ranked: Iterable[tuple[int, float]]) -> list[Document]:
    return [replace(documents[index], score=score) for index, score in ranked]
