"""A served model that embeds queries and documents, for frameworks."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.errors import BadResponseError
from embedgrpc.client.inputs import valid_text
from embedgrpc.client.integrations.connection import Connection
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import embed_options
from embedgrpc.client.result_types import Embeddings, StreamResult
from embedgrpc.client.vector_array import for_documents, for_queries, require_dense
from embedgrpc.client.vectors import SparseVector

_FLOATS: Final = ("float32", "float16", "bfloat16")
_SPARSE: Final[Mapping[str, Any]] = {"representations": ["sparse"]}


class Embedder:
    """A model that embeds: documents with its prompt for them, queries with theirs.

    Args:
        connection: The server.
        model: The id or an alias of the model; "" for the server's default.
        options: Options of `EmbedOptions` for all texts.
        query_options: Those that differ for queries.
        is_sparse: Whether to return sparse vectors.

    Raises:
        TypeError: There is no such option, one has the wrong type, or it asks for what frameworks
            have no room for.
        ValueError: An option is out of range, or the encoding has no floats.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        model: str = "",
        options: Mapping[str, Any] | None = None,
        query_options: Mapping[str, Any] | None = None,
        is_sparse: bool = False,
    ) -> None:
        self.connection = connection
        self.model = model
        self._for_documents = for_documents(options or {})
        self._for_queries = for_queries({**(options or {}), **(query_options or {})})
        for chosen in (self._for_documents, self._for_queries):
            check_options(chosen, is_sparse=is_sparse)
            if is_sparse:
                chosen.update(_SPARSE)

    def embed_documents(
        self, texts: Iterable[str], *, show_progress_bar: bool = False
    ) -> NDArray[np.float32]:
        """Embed any number of documents: float32 [texts, dimensions], in their order.

        Raises:
            EncodeError: Documents failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
            TypeError: The documents are one str, or one of them is none.
        """
        return self.connection.client().encode(
            several(texts),
            model=self.model,
            show_progress_bar=show_progress_bar,
            **self._for_documents,
        )

    def embed_queries(
        self, texts: Iterable[str], *, show_progress_bar: bool = False
    ) -> NDArray[np.float32]:
        """Embed any number of queries, as `embed_documents` does."""
        return self.connection.client().encode(
            several(texts),
            model=self.model,
            show_progress_bar=show_progress_bar,
            **self._for_queries,
        )

    def embed_document(self, text: str) -> NDArray[np.float32]:
        """Embed one document: float32 [dimensions].

        Raises:
            EmbedGrpcError: The call failed.
        """
        return self.connection.client().encode(
            valid_text("text", text), model=self.model, **self._for_documents
        )

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Embed one query, as `embed_document` does."""
        return self.connection.client().encode(
            valid_text("text", text), model=self.model, **self._for_queries
        )

    async def embed_documents_async(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Embed any number of documents: see `embed_documents`."""
        client = self.connection.async_client()
        return await client.encode(several(texts), model=self.model, **self._for_documents)

    async def embed_queries_async(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Embed any number of queries: see `embed_queries`."""
        client = self.connection.async_client()
        return await client.encode(several(texts), model=self.model, **self._for_queries)

    async def embed_document_async(self, text: str) -> NDArray[np.float32]:
        """Embed one document: see `embed_document`."""
        client = self.connection.async_client()
        return await client.encode(
            valid_text("text", text), model=self.model, **self._for_documents
        )

    async def embed_query_async(self, text: str) -> NDArray[np.float32]:
        """Embed one query: see `embed_query`."""
        client = self.connection.async_client()
        return await client.encode(valid_text("text", text), model=self.model, **self._for_queries)

    def sparse_documents(self, texts: Iterable[str]) -> list[SparseVector]:
        """Embed any number of documents as sparse vectors, in their order.

        Raises:
            EmbedGrpcError: A document failed, or the call did.
        """
        client = self.connection.client()
        with client.embed_stream(several(texts), model=self.model, **self._for_documents) as stream:
            return [_sparse_of(result) for result in stream]

    def sparse_queries(self, texts: Iterable[str]) -> list[SparseVector]:
        """Embed any number of queries, as `sparse_documents` does."""
        client = self.connection.client()
        with client.embed_stream(several(texts), model=self.model, **self._for_queries) as stream:
            return [_sparse_of(result) for result in stream]

    def sparse_query(self, text: str) -> SparseVector:
        """Embed one query as a sparse vector.

        Raises:
            EmbedGrpcError: The call failed.
        """
        client = self.connection.client()
        return _only_sparse(
            client.embed([valid_text("text", text)], model=self.model, **self._for_queries)
        )

    async def sparse_documents_async(self, texts: Iterable[str]) -> list[SparseVector]:
        """Embed any number of documents: see `sparse_documents`."""
        client = self.connection.async_client()
        async with client.embed_stream(
            several(texts), model=self.model, **self._for_documents
        ) as stream:
            return [_sparse_of(result) async for result in stream]

    async def sparse_query_async(self, text: str) -> SparseVector:
        """Embed one query: see `sparse_query`."""
        client = self.connection.async_client()
        return _only_sparse(
            await client.embed([valid_text("text", text)], model=self.model, **self._for_queries)
        )

    def dimensions(self) -> int:
        """Return the length of the dense vectors.

        Raises:
            EmbedGrpcError: The call failed.
        """
        return int(self._for_documents.get("dimensions") or self.describe().dimensions)

    def similarity(self) -> str:
        """Return the function that compares the vectors: see `Model.similarity`.

        Raises:
            EmbedGrpcError: The call failed.
        """
        return self.describe().similarity

    def describe(self) -> Model:
        """Return the model as the server describes it.

        Raises:
            EmbedGrpcError: The call failed.
        """
        client = self.connection.client()
        return client.get_model(self.model or client.get_server().default_model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embedder) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.connection, self.model))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection!r}, model={self.model!r})"


def several(texts: Iterable[str]) -> Iterable[str]:
    """Return texts.

    Raises:
        TypeError: They are one str: its vector has another shape than that of a list.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one str; give a list of texts")
    return texts


def check_options(options: Mapping[str, Any], *, is_sparse: bool = False) -> None:
    """Check that options ask for what frameworks have room for: see `Embedder`."""
    embed_options(**options)
    dense = {name: value for name, value in options.items() if name != "max_sparse_terms"}
    require_dense(cast("Any", dense if is_sparse else options))
    encoding = options.get("encoding", _FLOATS[0])
    if encoding not in _FLOATS:
        raise ValueError(f"encoding is {encoding!r}; frameworks take {', '.join(_FLOATS)}")


def _sparse_of(result: StreamResult) -> SparseVector:
    if result.error is not None:
        result.error.message = f"texts[{result.id}]: {result.error.message}"
        result.error.args = (result.error.message,)
        raise result.error.with_traceback(None)
    return _required(result.sparse)


def _only_sparse(embeddings: Embeddings) -> SparseVector:
    return _required(next(iter(embeddings.sparse), None))


def _required(vector: SparseVector | None) -> SparseVector:
    if vector is None:
        raise BadResponseError("the response has no sparse vector")
    return vector
