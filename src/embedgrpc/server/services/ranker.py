"""Ranks the documents of queries that have the same options."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

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
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.v1 import common_pb2, rerank_service_pb2

# Index, score, flag and keys of one document, without its text.
_RESULT_BYTES = 24
# So many results are packed in a quarter of a millisecond.
_FEW_DOCUMENTS = 128


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
            special_tokens=loaded.embedder.tokenizer.special_token_count if loaded.embedder else 0,
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
        self, query: str, documents: Sequence[str], call: Call, *, size_bytes: int
    ) -> tuple[bytes, common_pb2.Usage]:
        """Rank the documents of one query.

        Args:
            query: The query.
            documents: The documents.
            call: For whom.
            size_bytes: The bytes of UTF-8 that the documents have together, at least.

        Returns:
            A `Ranking` in wire form, and its usage.

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

        def pack() -> tuple[bytes, common_pb2.Usage]:
            packed = self._pack(documents, ranking, count)
            return packed.SerializeToString(), packed.usage

        if count + len(ranking.failures) <= _FEW_DOCUMENTS and not self.options.return_documents:
            return pack()
        # It would hold up the event loop.
        return await asyncio.to_thread(pack)

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

    def _pack(
        self, documents: Sequence[str], ranking: Ranking, count: int
    ) -> rerank_service_pb2.Ranking:
        rows = zip(
            ranking.indices[:count].tolist(),
            ranking.scores[:count].tolist(),
            ranking.truncated[:count].tolist(),
            strict=True,
        )
        returns = self.options.return_documents
        return rerank_service_pb2.Ranking(
            results=[
                rerank_service_pb2.RankedDocument(
                    index=index,
                    score=score,
                    document=documents[index] if returns else "",
                    truncated=truncated,
                )
                for index, score, truncated in rows
            ],
            failures=[
                rerank_service_pb2.FailedDocument(index=index, error=item_error(error))
                for index, error in sorted(ranking.failures.items())
            ],
            usage=common_pb2.Usage(
                input_tokens=ranking.input_tokens,
                truncated_inputs=ranking.truncated_inputs,
                query_tokens=ranking.query_tokens,
                document_tokens=ranking.document_tokens,
            ),
        )


def _largest(documents: Sequence[str], count: int) -> int:
    """Return the bytes of the largest documents."""
    sizes = sorted((len(document.encode()) for document in documents), reverse=True)
    return sum(sizes[:count])
