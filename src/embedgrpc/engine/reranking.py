"""Scores documents against a query with one model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import FloatArray, IntArray
from embedgrpc.engine import errors
from embedgrpc.engine.embedding import too_many_tokens
from embedgrpc.engine.pipeline import Inputs, Pipeline
from embedgrpc.engine.texts import CheckedText, check_text
from embedgrpc.engine.work import Call
from embedgrpc.models.metadata import Activation, ModelMetadata
from embedgrpc.models.outputs import LOGITS, SENTENCE_EMBEDDING
from embedgrpc.models.tokenizer import (
    Tokenizer,
    TokenLimitError,
    TokenSequence,
    Truncation,
    cut_tokens,
)


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

    async def rerank(
        self, query: str, documents: Sequence[str], spec: RerankSpec, call: Call
    ) -> Ranking:
        """Scores every document.

        Args:
            query: What they are compared with.
            documents: At least one.
            spec: How.
            call: For whom.

        Raises:
            EngineError: One of them failed, or there is no room or time for them.
        """
        ...


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """Reads query and document together.

    Attributes:
        metadata: What the model is.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: The most characters of a text that are tokenized.
    """

    metadata: ModelMetadata
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int

    async def rerank(
        self, query: str, documents: Sequence[str], spec: RerankSpec, call: Call
    ) -> Ranking:
        """Scores every document; see `Reranker`."""
        inputs = self._inputs(query, documents, spec)
        try:
            job, logits = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = f"documents[{error.index}]"
            raise
        return _rank(
            self._score(logits[:, 0], spec.scale),
            sequences=[one for one in job.sequences if one],
            cut=[inputs.texts[0].cut or document.cut for document in inputs.texts[1:]],
        )

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Scores a health check's text against itself, past admission; float32 [1, 1]."""
        spec = RerankSpec(scale=ScoreScale.RAW, truncation=Truncation.END, max_tokens=0)
        return await self.pipeline.probe(self._inputs(text, [text], spec), call)

    def _inputs(self, query: str, documents: Sequence[str], spec: RerankSpec) -> Inputs:
        return Inputs(
            texts=_check(query, documents, spec, self.max_characters),
            sequences=len(documents),
            prepare=lambda ids: [
                self._frame(ids[0], document, spec, field=f"documents[{index}]")
                for index, document in enumerate(ids[1:])
            ],
            output=LOGITS,
            max_tokens=self.metadata.max_tokens,
            atomic=True,
        )

    def _frame(
        self, query: IntArray, document: IntArray, spec: RerankSpec, *, field: str
    ) -> TokenSequence | errors.EngineError:
        try:
            kept = document
            if spec.max_tokens:
                kept = cut_tokens(document, spec.max_tokens, spec.truncation)
            pair = self.tokenizer.frame_pair(
                query,
                kept,
                max_tokens=self.metadata.max_tokens,
                truncation=spec.truncation,
            )
        except TokenLimitError as error:
            return too_many_tokens(error, field=field)
        dropped = len(document) - len(kept)
        return replace(pair, token_count_before=pair.token_count_before + dropped)

    def _score(self, logits: FloatArray, scale: ScoreScale) -> FloatArray:
        raw = self.metadata.activation is Activation.IDENTITY
        if scale is ScoreScale.RAW or (scale is ScoreScale.MODEL and raw):
            return logits
        # In float32 whatever the model's own type: in half precision, good scores tie at 1.
        # Of the two forms each is exact where the other overflows.
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SimilarityReranker:
    """Embeds query and documents apart; the score is the cosine of their vectors.

    Attributes:
        metadata: What the model is.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: The most characters of a text that are tokenized.
    """

    metadata: ModelMetadata
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int

    async def rerank(
        self, query: str, documents: Sequence[str], spec: RerankSpec, call: Call
    ) -> Ranking:
        """Scores every document; see `Reranker`."""
        inputs = Inputs(
            texts=_check(query, documents, spec, self.max_characters),
            sequences=len(documents) + 1,
            prepare=lambda ids: [
                self._frame(one, spec, position=position) for position, one in enumerate(ids)
            ],
            output=SENTENCE_EMBEDDING,
            max_tokens=self.metadata.max_tokens,
            atomic=True,
        )
        try:
            job, rows = await self.pipeline.run(inputs, call)
            vectors = _unit(rows)
        except errors.NonFiniteOutputError as error:
            error.field = _field(error.index)
            raise
        return _rank(
            vectors[1:] @ vectors[0],
            sequences=[one for one in job.sequences if one],
            cut=[checked.cut for checked in inputs.texts],
        )

    def _frame(
        self, ids: IntArray, spec: RerankSpec, *, position: int
    ) -> TokenSequence | errors.EngineError:
        limit = self.metadata.max_tokens
        try:
            return self.tokenizer.frame(
                ids,
                max_tokens=min(spec.max_tokens or limit, limit) if position else limit,
                truncation=spec.truncation,
            )
        except TokenLimitError as error:
            return too_many_tokens(error, field=_field(position))


def _field(position: int) -> str:
    """Names the request's field of a text in the job: the query is the first."""
    return f"documents[{position - 1}]" if position else "query"


def _check(
    query: str, documents: Sequence[str], spec: RerankSpec, max_characters: int
) -> list[CheckedText]:
    """Checks the query and the documents, in this order, and puts their prompts in front."""
    prompts = [spec.query_prompt] + [spec.document_prompt] * len(documents)
    checked = []
    for position, (text, prompt) in enumerate(zip([query, *documents], prompts, strict=True)):
        one = check_text(
            text,
            max_characters=max_characters,
            truncation=spec.truncation,
            field=_field(position),
        )
        checked.append(CheckedText(prompt + one.text, cut=one.cut))
    return checked


def _unit(rows: FloatArray) -> FloatArray:
    """Gives rows float32 [texts, width] unit length."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        error = errors.NonFiniteOutputError("a vector of zeros has no direction")
        error.index = int((norms[:, 0] == 0).argmax())
        raise error
    unit: FloatArray = rows / norms
    return unit


def _rank(
    scores: FloatArray, *, sequences: Sequence[TokenSequence], cut: Sequence[bool]
) -> Ranking:
    """Sorts documents by score.

    Args:
        scores: float32 [documents].
        sequences: All that the model read; the last `documents` of them are the documents'.
        cut: For each sequence whether characters were cut from it.
    """
    order = np.argsort(-scores, kind="stable")
    truncated = np.array(
        [one.truncated or was_cut for one, was_cut in zip(sequences, cut, strict=True)], np.bool_
    )
    return Ranking(
        indices=order,
        scores=scores[order],
        truncated=truncated[len(truncated) - len(scores) :][order],
        input_tokens=sum(len(one.input_ids) for one in sequences),
        truncated_inputs=int(truncated.sum()),
    )
