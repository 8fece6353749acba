"""What all kinds of rerankers share: the request, the result and the protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tokenizing.texts import CheckedText, check_text
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import RerankMethod, Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


class ScoreScale(StrEnum):
    """The scale of relevance scores."""

    MODEL = "model"
    RAW = "raw"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class RerankSpec:
    """How to score documents.

    Attributes:
        scale: The scale of the scores.
        truncation: The treatment of texts that are too long.
        max_tokens: Maximum tokens of a document; 0 for the model's limit alone. For a
            cross-encoder, the query's tokens and special tokens do not count.
        query_prompt: Prepended to the query.
        document_prompt: Prepended to each document.
        tasks: Those of the query and of the documents, if the model has several.
    """

    scale: ScoreScale
    truncation: Truncation
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    tasks: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, best first.

    Attributes:
        indices: int64 [documents]; positions in the request. Equal scores keep their order.
        scores: float32 [documents]; in the same order, descending.
        truncated: bool [documents]; in the same order.
        query_tokens: Tokens of the query that the model read; of a cross-encoder, once for each
            document, with the special tokens.
        document_tokens: Tokens of the documents that the model read.
        truncated_inputs: Number of texts that were cut.
        failures: Why documents have no score, by their position in the request.
    """

    indices: NDArray[np.int64]
    scores: FloatArray
    truncated: NDArray[np.bool_]
    query_tokens: int
    document_tokens: int
    truncated_inputs: int
    failures: Mapping[int, EngineError]

    @property
    def input_tokens(self) -> int:
        """Tokens that the model read."""
        return self.query_tokens + self.document_tokens


class Reranker(Protocol):
    """Scores documents against a query."""

    @property
    def method(self) -> RerankMethod:
        """The method of scoring."""
        ...

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
        """Score every document.

        Args:
            query: The query.
            documents: At least one.
            spec: How to score.
            call: The call they belong to.
            documents_bytes: Approximate UTF-8 size of the documents together.
            partial: Whether documents that fail leave the others unaffected.

        Raises:
            EngineError: The query failed, or a document although all must succeed, or there is no
                room or time for them.
        """
        ...


QUERY_FIELD = "query"


def field_of(position: int) -> str:
    """Return the request's field of a text in the job: the query is the first."""
    return f"documents[{position - 1}]" if position else QUERY_FIELD


class QueryAndDocuments(Sequence[str]):
    """The texts of a reranking job: the query, then the documents.

    Args:
        query: The query.
        documents: The documents; each is read only when it is needed.
    """

    def __init__(self, query: str, documents: Sequence[str]) -> None:
        self._query = query
        self._documents = documents

    def __len__(self) -> int:
        return 1 + len(self._documents)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._documents[index - 1] if index else self._query


def check_input(
    position: int,
    text: str,
    spec: RerankSpec,
    max_characters: int,
    *,
    collapses_blanks: bool,
) -> CheckedText:
    """Check the query, at position 0, or a document, and prepend its prompt.

    Raises:
        EngineError: It cannot be used.
    """
    checked = check_text(
        text,
        max_characters=max_characters,
        truncation=spec.truncation,
        field=field_of(position),
        collapses_blanks=collapses_blanks,
    )
    prompt = spec.document_prompt if position else spec.query_prompt
    return CheckedText(prompt + checked.text, cut=checked.cut) if prompt else checked


def rank(
    scores: FloatArray,
    *,
    positions: Sequence[int],
    sequences: Sequence[TokenSequence],
    query: TokenSequence | None,
    failures: Mapping[int, EngineError],
) -> Ranking:
    """Sort documents by score.

    Args:
        scores: float32 [documents].
        positions: Where these documents stand in the request.
        sequences: What the model read of each: the document, or the pair of query and document.
        query: What it read of the query; None where that is part of each pair.
        failures: Why other documents have no score, by their position in the request.
    """
    order = np.argsort(-scores, kind="stable")
    truncated = np.array([one.truncated for one in sequences], np.bool_)
    tokens = sum(len(one.input_ids) for one in sequences)
    if query is None:
        document_tokens = sum(one.document_tokens for one in sequences)
        query_tokens = tokens - document_tokens
    else:
        document_tokens, query_tokens = tokens, len(query.input_ids)
    return Ranking(
        indices=np.array(positions, np.int64)[order],
        scores=scores[order],
        truncated=truncated[order],
        query_tokens=query_tokens,
        document_tokens=document_tokens,
        truncated_inputs=int(truncated.sum()) + (query is not None and query.truncated),
        failures=failures,
    )
