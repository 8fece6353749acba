"""Ranks the documents of queries that have the same options."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from embedgrpc.engine.results.packing import pack_in_turn
from embedgrpc.engine.tasks.reranking import Ranking, Reranker, RerankSpec
from embedgrpc.engine.work import Call
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.rerank_options import read_rerank_options
from embedgrpc.server.contract.response_sizes import (
    COMMON_BYTES,
    FAILURE_BYTES,
    check_response_size,
)
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.v1 import rerank_service_pb2

# Index, score, flag and keys of one document, without its text.
_RESULT_BYTES = 24
# So many results are packed in a quarter of a millisecond.
_FEW_DOCUMENTS = 128

# A ranking in the protocol's own form.
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """The documents of one query, ranked.

    Attributes:
        ranker: What ranked them.
        documents: The documents in the order of the request.
        ranking: Their ranking.
        count: How many results were asked for, at most as many as there are documents.
    """

    ranker: "Ranker"
    documents: Sequence[str]
    ranking: Ranking
    count: int


@dataclass(frozen=True, slots=True)
class Ranker:
    """Ranks the documents of queries with the same options.

    Attributes:
        served: The model.
        loaded: The same, loaded.
        reranker: Scores with it.
        spec: How.
        options: The options of the contract.
        partial: Whether documents that fail leave the others unaffected.
        max_inputs: Most documents of a query.
        max_response_bytes: The largest response to one query.
    """

    served: ServedModel
    loaded: LoadedModel
    reranker: Reranker
    spec: RerankSpec
    options: rerank_service_pb2.RerankOptions
    partial: bool
    max_inputs: int
    max_response_bytes: int

    @classmethod
    def of(
        cls,
        served: ServedModel,
        options: rerank_service_pb2.RerankOptions,
        *,
        partial: bool,
        max_inputs: int,
        max_response_bytes: int,
        field: str,
    ) -> "Ranker":
        """Read the options of a request.

        Args:
            served: The model.
            options: The options.
            partial: Whether documents that fail leave the others unaffected.
            max_inputs: Most documents of a query.
            max_response_bytes: The largest response to one query.
            field: Where the options stand in the request.

        Raises:
            EngineError: The model cannot be used now, or an option is wrong.
        """
        loaded, reranker = served.reranker()
        spec = read_rerank_options(
            options,
            loaded.properties,
            default_truncation=served.default_truncation,
            special_tokens=loaded.embedder.special_token_count if loaded.embedder else 0,
            renders_instruction=loaded.renders_instruction,
            field=field,
        )
        return cls(
            served,
            loaded,
            reranker,
            spec,
            options,
            partial=partial,
            max_inputs=max_inputs,
            max_response_bytes=max_response_bytes,
        )

    def bound_response(self, documents: int, size_bytes: int) -> int:
        """Bound the bytes of a response without a look at any document.

        Args:
            documents: How many there are.
            size_bytes: The bytes of UTF-8 that they have together, at least.
        """
        size = min(documents, self.max_inputs) * self._entry_bytes
        return size + (size_bytes if self.options.return_documents else 0)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        call: Call,
        *,
        size_bytes: int,
        pack: Callable[[RankedBatch], Packed],
    ) -> Packed:
        """Rank the documents of one query, and pack the ranking.

        Args:
            query: The query.
            documents: The documents.
            call: For whom.
            size_bytes: The bytes of UTF-8 that the documents have together, at least.
            pack: Makes the response. Called off the event loop if that takes long.

        Raises:
            EngineError: The query failed, or a document although all must succeed, or the response
                would be too large.
        """
        check_count(len(documents), limit=self.max_inputs, field="documents")
        count = min(self.options.top_n or len(documents), len(documents))
        await self._check_size(documents, count, size_bytes)
        ranking = await self.reranker.rerank(
            query, documents, self.spec, call, documents_bytes=size_bytes, partial=self.partial
        )
        ranked = RankedBatch(self, documents, ranking, count)
        if count + len(ranking.failures) <= _FEW_DOCUMENTS and not self.options.return_documents:
            return pack(ranked)
        # It would hold up the event loop.
        return await pack_in_turn(partial(pack, ranked))

    @property
    def _entry_bytes(self) -> int:
        return FAILURE_BYTES if self.partial else _RESULT_BYTES

    async def _check_size(self, documents: Sequence[str], count: int, size_bytes: int) -> None:
        """Refuse a query whose response would be too large."""
        size = self._entry_bytes * (len(documents) if self.partial else count)
        returns = self.options.return_documents
        if returns and size + size_bytes + COMMON_BYTES > self.max_response_bytes:
            # Which ones are returned is not known yet: perhaps the largest. To look at every
            # document may take milliseconds.
            size += await asyncio.to_thread(_largest, documents, count)
        check_response_size(size, limit=self.max_response_bytes)


def _largest(documents: Sequence[str], count: int) -> int:
    """Return the bytes of the largest documents."""
    sizes = sorted((len(document.encode()) for document in documents), reverse=True)
    return sum(sizes[:count])
