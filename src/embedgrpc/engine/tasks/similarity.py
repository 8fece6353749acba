"""Reranks by comparing the embeddings of the query and of each document."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, JobResult
from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.tasks.embedder import Embedder, no_direction, read_limit_of
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.tasks.reranking import (
    QueryAndDocuments,
    Ranking,
    RerankSpec,
    check_input,
    field_of,
    rank,
)
from embedgrpc.engine.tokenizing.jobs import TokenizeResult
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import Representation, RerankMethod, TextRole
from embedgrpc.models.tokenizers.token_sequence import TokenSequence

# Source: the weights published for BGE-M3 when reranking with all three representations.
_DENSE_WEIGHT, _SPARSE_WEIGHT, _MULTI_VECTOR_WEIGHT = 0.4, 0.2, 0.4
# Maximum size of the vectors of one request, which are kept until its last document is scored.
_VECTORS_BYTES_MAX = 512 * 1024 * 1024
_FLOAT_BYTES = 4
_SPECIAL_TOKENS = 8
# Source: sentence-transformers, `maxsim`.
_NO_MATCH = -1e9


# The representations that each method compares, best method first. Similarity is the cosine of
# dense vectors, or the dot product of sparse ones where there are no dense vectors.
_REPRESENTATIONS = {
    RerankMethod.HYBRID: (tuple(Representation),),
    RerankMethod.SIMILARITY: ((Representation.DENSE,), (Representation.SPARSE,)),
    RerankMethod.LATE_INTERACTION: ((Representation.MULTI_VECTOR,),),
}


def method_for(representations: Sequence[Representation]) -> RerankMethod | None:
    """Return the best method for a model; None if it cannot rank."""
    return next((method for method in _REPRESENTATIONS if can_rank(method, representations)), None)


def can_rank(method: RerankMethod, representations: Sequence[Representation]) -> bool:
    """Return whether a model with these representations can rank by this method."""
    return bool(representations_for(method, representations))


def representations_for(
    method: RerankMethod, representations: Sequence[Representation]
) -> tuple[Representation, ...]:
    """Return what a method compares of a model with these representations; empty if it cannot."""
    choices = _REPRESENTATIONS.get(method, ())
    return next((one for one in choices if set(one) <= set(representations)), ())


@dataclass(frozen=True, slots=True)
class SimilarityReranker:
    """Scores documents by comparing embeddings.

    Attributes:
        embedder: Embeds query and documents.
        method: How embeddings are compared.
        max_query_tokens: Maximum tokens of a query, at most the model's.
    """

    embedder: Embedder
    method: RerankMethod
    max_query_tokens: int

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
        properties = self.embedder.properties
        embed_spec = EmbedSpec(
            prompt="",
            dimensions=properties.vector_dimensions,
            normalize=True,
            truncation=spec.truncation,
            max_tokens=properties.max_tokens,
            representations=self._compared,
            max_sparse_terms=properties.max_active_dims
            if self.method is RerankMethod.SIMILARITY
            else 0,
        )
        texts = QueryAndDocuments(query, documents)
        prompts = len(spec.query_prompt) + len(spec.document_prompt) * len(documents)
        size_bytes = min(len(query), self.embedder.max_characters) + documents_bytes + prompts
        size_bytes += self._min_query_tokens
        await self._check_size(texts, size_bytes, spec)
        inputs = Inputs(
            texts=texts,
            check=lambda position, text: check_input(
                position,
                text,
                spec,
                self._limit_characters(position, spec),
                collapses_blanks=self.embedder.tokenizer.collapses_blanks,
            ),
            sequences=len(texts),
            prepare=lambda results: self._build_sequences(results, spec),
            outputs=self.embedder.outputs(embed_spec),
            size_bytes=size_bytes,
            max_tokens=properties.max_tokens,
            atomic=not partial,
            read_limit=read_limit_of(embed_spec),
        )
        try:
            result = await self.embedder.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = field_of(error.index)
            raise

        def score() -> Ranking:
            return self._score(result, embed_spec, partial=partial)

        # Comparing tokens or terms would hold up the event loop, and so would large vectors.
        cheap = self._compared == (Representation.DENSE,) and not result.rows.are_large()
        return score() if cheap else await asyncio.to_thread(score)

    def _score(self, result: JobResult, spec: EmbedSpec, *, partial: bool) -> Ranking:
        """Compare the embeddings of query and documents, which are the rows of a job."""
        kept, rows = result.succeeded()
        failures = dict(result.errors)
        if kept:
            zero = self.embedder.has_no_direction(rows, spec)
            if zero is not None:
                without = [kept[row] for row in zero.nonzero()[0].tolist()]
                found = [no_direction(field_of(position)) for position in without]
                if not partial:
                    found[0].add_others(found[1:])
                    raise found[0]
                failures.update(zip(without, found, strict=True))
                left = (~zero).nonzero()[0].tolist()
                kept, rows = [kept[row] for row in left], rows.keep(left)
        if 0 in failures:
            # Without its query, no document has a score.
            raise failures[0]
        sequences = [one for one in (result.job.sequences[index] for index in kept) if one]
        scores = np.empty(0, np.float32)
        if len(kept) > 1:
            scores = self._compare(self.embedder.finish(result.job, kept, rows, spec))
        return rank(
            scores,
            positions=[position - 1 for position in kept[1:]],
            sequences=sequences[1:],
            query=sequences[0],
            failures={position - 1: error for position, error in failures.items()},
        )

    def _compare(self, embeddings: Embeddings) -> FloatArray:
        scores = _SCORES[self.method](embeddings)
        late = self.embedder.properties.late_interaction
        if late is None or not late.mean:
            return scores
        return scores / np.float32(max(1, len((embeddings.multi_vectors or ((),))[0])))

    async def _check_size(self, texts: Sequence[str], size_bytes: int, spec: RerankSpec) -> None:
        """Refuse documents whose vectors, one per token, would take too much memory.

        Raises:
            InvalidRequestError: They would.
        """
        properties = self.embedder.properties
        if Representation.MULTI_VECTOR not in self._compared:
            return
        token_bytes = properties.multi_vector_dimensions * _FLOAT_BYTES
        # A token has at least one byte. Only if that bound is too high are the texts looked at.
        if (size_bytes + len(texts) * _SPECIAL_TOKENS) * token_bytes <= _VECTORS_BYTES_MAX:
            return

        def count_tokens() -> int:
            prompts = [spec.query_prompt] + [spec.document_prompt] * (len(texts) - 1)
            return self._min_query_tokens + sum(
                min(properties.max_tokens, len(prompt) + len(text) + _SPECIAL_TOKENS)
                for prompt, text in zip(prompts, texts, strict=True)
            )

        size = await asyncio.to_thread(count_tokens) * token_bytes
        if size > _VECTORS_BYTES_MAX:
            raise errors.InvalidRequestError(
                f"the vectors of all tokens may take {size} bytes; the limit is"
                f" {_VECTORS_BYTES_MAX}: send fewer documents a request",
                field="documents",
                metadata={"label": "TOO_MANY_VECTORS", "bytes": str(size)},
            )

    @property
    def _compared(self) -> tuple[Representation, ...]:
        return representations_for(self.method, self.embedder.properties.representations)

    @property
    def _min_query_tokens(self) -> int:
        late = self.embedder.properties.late_interaction
        return late.min_tokens(TextRole.QUERY) if late else 0

    def _role_of(self, position: int) -> TextRole | None:
        if self.embedder.properties.late_interaction is None:
            return None
        return TextRole.DOCUMENT if position else TextRole.QUERY

    def _limit_tokens(self, position: int, spec: RerankSpec) -> int:
        late, role = self.embedder.properties.late_interaction, self._role_of(position)
        limit = late.max_tokens[role] if late and role else self.embedder.properties.max_tokens
        return min((spec.max_tokens or limit) if position else self.max_query_tokens, limit)

    def _limit_characters(self, position: int, spec: RerankSpec) -> int:
        prompt = spec.document_prompt if position else spec.query_prompt
        tokens = self._limit_tokens(position, spec)
        return self.embedder.limit_characters(tokens, spec.truncation, prompt)

    def _build_sequences(
        self, results: Sequence[TokenizeResult], spec: RerankSpec
    ) -> list[TokenSequence | errors.EngineError]:
        limits = [self._limit_tokens(position, spec) for position in (0, 1)]
        prompts = (spec.query_prompt, spec.document_prompt)
        prompt_tokens = [
            self.embedder.count_prompt_tokens(prompt, limit)
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        return [
            self.embedder.build_sequence(
                result,
                max_tokens=limits[min(position, 1)],
                truncation=spec.truncation,
                field=field_of(position),
                task=spec.tasks[min(position, 1)],
                prompt_tokens=prompt_tokens[min(position, 1)],
                role=self._role_of(position),
            )
            for position, result in enumerate(results)
        ]


# Each compares the first embedding, the query's, with the others; returns float32 [documents].


def _cosine(embeddings: Embeddings) -> FloatArray:
    vectors = embeddings.vectors
    if vectors is None:
        raise ValueError("the embeddings have no dense vectors")
    scores: FloatArray = vectors[1:] @ vectors[0]
    return scores


def _lexical(embeddings: Embeddings) -> FloatArray:
    query, *documents = embeddings.sparse or ()
    return _multiply(query, documents)


def _similarity(embeddings: Embeddings) -> FloatArray:
    return _lexical(embeddings) if embeddings.vectors is None else _cosine(embeddings)


def _multiply(query: SparseVector, documents: Sequence[SparseVector]) -> FloatArray:
    return np.array([query.dot(document) for document in documents], np.float32)


def compare_by_similarity(query: Embeddings, documents: Embeddings) -> FloatArray:
    """Compare the one embedding of a query with each document's; float32 [documents].

    Args:
        query: With a dense vector of unit length, or with a sparse one alone.
        documents: The same.
    """
    if query.vectors is None or documents.vectors is None:
        return _multiply((query.sparse or ())[0], documents.sparse or ())
    scores: FloatArray = documents.vectors @ query.vectors[0]
    return scores


def _late_interaction(embeddings: Embeddings) -> FloatArray:
    """Sum, over the query's tokens, the best match in the document. Source: ColBERT.

    A document without vectors comes after all others.
    """
    query, *documents = embeddings.multi_vectors or ()
    return np.array(
        [(query @ one.T).max(axis=1).sum() if len(one) else _NO_MATCH for one in documents],
        np.float32,
    )


def _hybrid(embeddings: Embeddings) -> FloatArray:
    """Combine all three scores; late interaction by its mean. Source: FlagEmbedding, BGE-M3."""
    query_tokens = len((embeddings.multi_vectors or ((),))[0])
    total = (
        _DENSE_WEIGHT * _cosine(embeddings)
        + _SPARSE_WEIGHT * _lexical(embeddings)
        + _MULTI_VECTOR_WEIGHT * _late_interaction(embeddings) / query_tokens
    )
    weights = _DENSE_WEIGHT + _SPARSE_WEIGHT + _MULTI_VECTOR_WEIGHT
    return (total / weights).astype(np.float32)


_SCORES: dict[RerankMethod, Callable[[Embeddings], FloatArray]] = {
    RerankMethod.SIMILARITY: _similarity,
    RerankMethod.LATE_INTERACTION: _late_interaction,
    RerankMethod.HYBRID: _hybrid,
}
