"""A served model that ranks documents, for frameworks."""

from collections.abc import Mapping, Sequence
from typing import Any

from embedgrpc.client.integrations.connection import Connection
from embedgrpc.client.options import rerank_options


class Ranker:
    """A model that ranks any number of documents by their relevance for a query.

    Args:
        connection: The server.
        model: The id or an alias of the model; "" for the server's default.
        options: Options of `RerankOptions`, but for `top_n` and `return_documents`.

    Raises:
        TypeError: There is no such option, or one has the wrong type.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        model: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.connection = connection
        self.model = model
        self._options = dict(options or {})
        for name in ("top_n", "return_documents"):
            if name in self._options:
                raise TypeError(f"options have {name!r}, which the framework has itself")
        rerank_options(**self._options)

    def rank(
        self, query: str, documents: Sequence[str], *, top_k: int | None = None
    ) -> list[tuple[int, float]]:
        """Rank documents.

        Args:
            query: The query.
            documents: The documents.
            top_k: The limit of documents to return; None for all.

        Returns:
            The position and the score of each document, best first.

        Raises:
            EmbedGrpcError: The call failed, or a document did.
        """
        if not documents:
            return []
        client = self.connection.client()
        return _pairs(client.rank(query, documents, top_k=top_k, model=self.model, **self._options))

    async def rank_async(
        self, query: str, documents: Sequence[str], *, top_k: int | None = None
    ) -> list[tuple[int, float]]:
        """Rank documents: see `rank`."""
        if not documents:
            return []
        client = self.connection.async_client()
        return _pairs(
            await client.rank(query, documents, top_k=top_k, model=self.model, **self._options)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranker) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.connection, self.model))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection!r}, model={self.model!r})"


def _pairs(ranked: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(one["corpus_id"], one["score"]) for one in ranked]
