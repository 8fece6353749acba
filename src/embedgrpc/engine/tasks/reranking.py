"""What scoring documents against a query means, for every kind of model."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.tokenizing.texts import CheckedText, check_text
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import RerankMethod
from embedgrpc.models.tokenizers.tokenizer import TokenSequence, Truncation


class ScoreScale(StrEnum):
    """The scale of relevance scores."""

    MODEL = "model"
    RAW = "raw"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class RerankSpec:
    """How documents are scored.

    Attributes:
        scale: The scale of the scores.
        truncation: What to do with what is too long.
        max_tokens: The most tokens of a document, or 0 for the model's limit alone; for a
            cross-encoder, without those of the query and without special tokens.
        query_prompt: What is put in front of the query.
        document_prompt: What is put in front of each document.
    """

    scale: ScoreScale
    truncation: Truncation
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, best first.

    Attributes:
        indices: int64 [documents]; positions in the request. Equal scores keep their order.
        scores: float32 [documents]; in the same order, descending.
        truncated: bool [documents]; in the same order.
        input_tokens: Tokens that the model read.
        truncated_inputs: How many texts were cut.
    """

    indices: NDArray[np.int64]
    scores: FloatArray
    truncated: NDArray[np.bool_]
    input_tokens: int
    truncated_inputs: int


class Reranker(Protocol):
    """Scores documents against a query."""

    @property
    def method(self) -> RerankMethod:
        """How it does so."""
        ...

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        spec: RerankSpec,
        call: Call,
        *,
        documents_bytes: int,
    ) -> Ranking:
        """Scores every document.

        Args:
            query: What they are compared with.
            documents: At least one.
            spec: How.
            call: For whom.
            documents_bytes: About how many bytes of UTF-8 the documents have together.

        Raises:
            EngineError: One of them failed, or there is no room or time for them.
        """
        ...


def field_of(position: int) -> str:
    """Names the request's field of a text in the job: the query is the first."""
    return f"documents[{position - 1}]" if position else "query"


class QueryAndDocuments(Sequence[str]):
    """The texts of a job that ranks documents: the query, and the documents after it.

    Args:
        query: The query.
        documents: The documents; each is asked for when it is needed, and not before.
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


def check_input(position: int, text: str, spec: RerankSpec, max_characters: int) -> CheckedText:
    """Checks the query, at position 0, or a document, and puts its prompt in front.

    Raises:
        EngineError: It cannot be used.
    """
    checked = check_text(
        text, max_characters=max_characters, truncation=spec.truncation, field=field_of(position)
    )
    prompt = spec.document_prompt if position else spec.query_prompt
    return CheckedText(prompt + checked.text, cut=checked.cut) if prompt else checked


def rank(scores: FloatArray, *, sequences: Sequence[TokenSequence]) -> Ranking:
    """Sorts documents by score.

    Args:
        scores: float32 [documents].
        sequences: All that the model read; the last `documents` of them are the documents'.
    """
    order = np.argsort(-scores, kind="stable")
    truncated = np.array([one.truncated for one in sequences], np.bool_)
    return Ranking(
        indices=order,
        scores=scores[order],
        truncated=truncated[len(truncated) - len(scores) :][order],
        input_tokens=sum(len(one.input_ids) for one in sequences),
        truncated_inputs=int(truncated.sum()),
    )
