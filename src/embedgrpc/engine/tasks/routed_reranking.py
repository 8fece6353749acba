"""Reranks by the embeddings of a query and of documents that pass different routes of a model."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import BatchResult, Embeddings, EmbedSpec
from embedgrpc.engine.tasks.reranking import QUERY_FIELD, Ranking, RerankSpec
from embedgrpc.engine.tasks.similarity import compare_by_similarity, representations_for
from embedgrpc.engine.work import Call
from embedgrpc.models.kinds import Representation, RerankMethod


@dataclass(frozen=True, slots=True)
class RoutedReranker:
    """Scores documents by the similarity of their vectors to the query's.

    Attributes:
        query: Embeds queries.
        documents: Embeds documents.
        max_query_tokens: Maximum tokens of a query.
    """

    query: Embedder
    documents: Embedder
    max_query_tokens: int
    method: RerankMethod = RerankMethod.SIMILARITY

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        spec: RerankSpec,
        call: Call,
        *,
        documents_bytes: int,
        partial: bool = False,
    ) -> Ranking:
        """Score every document; see `Reranker`."""
        # Each route has a queue of its own, so the two jobs run side by side.
        embedding = asyncio.create_task(
            self.documents.embed(
                documents,
                self._spec(self.documents, spec, spec.document_prompt, spec.max_tokens),
                call,
                size_bytes=documents_bytes,
                pack=_keep,
                field="documents",
                partial=partial,
            )
        )
        try:
            # Awaited first: without its query, no document has a score.
            asked = await self.query.embed(
                [query],
                self._spec(self.query, spec, spec.query_prompt, self.max_query_tokens),
                call,
                size_bytes=min(len(query), self.query.max_characters),
                pack=_keep,
                field=QUERY_FIELD,
                indexed=False,
            )
            found = await embedding
        finally:
            embedding.cancel()
            await asyncio.gather(embedding, return_exceptions=True)
        one = asked.embeddings
        if one is None:
            raise RuntimeError("the query has neither a vector nor an error")
        if one.vectors is None:
            # Comparing terms would hold up the event loop.
            return await asyncio.to_thread(_rank, one, found)
        return _rank(one, found)

    def _spec(
        self, embedder: Embedder, spec: RerankSpec, prompt: str, max_tokens: int
    ) -> EmbedSpec:
        properties = embedder.properties
        return EmbedSpec(
            prompt=prompt,
            dimensions=properties.vector_dimensions,
            normalize=Representation.DENSE in properties.representations,
            truncation=spec.truncation,
            max_tokens=min(max_tokens or properties.max_tokens, properties.max_tokens),
            representations=representations_for(self.method, properties.representations),
            max_sparse_terms=properties.max_active_dims,
            route=embedder.route,
        )


def _keep(result: BatchResult) -> BatchResult:
    return result


def _rank(query: Embeddings, documents: BatchResult) -> Ranking:
    """Compare the query's vector with the documents', and sort these."""
    found = documents.embeddings
    scores = np.empty(0, np.float32) if found is None else compare_by_similarity(query, found)
    order = np.argsort(-scores, kind="stable")
    truncated = np.array([] if found is None else found.truncated, np.bool_)
    return Ranking(
        indices=np.array(documents.indices, np.int64)[order],
        scores=scores[order],
        truncated=truncated[order],
        query_tokens=query.token_counts[0],
        document_tokens=0 if found is None else sum(found.token_counts),
        truncated_inputs=int(truncated.sum()) + query.truncated[0],
        failures=documents.failures,
    )
