"""Scores documents with a cross-encoder, which reads query and document together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, Pipeline
from embedgrpc.engine.tasks.reranking import (
    QUERY_FIELD,
    QueryAndDocuments,
    Ranking,
    RerankSpec,
    ScoreScale,
    check_input,
    rank,
)
from embedgrpc.engine.tokenizing.jobs import ReadLimit, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText, too_many_tokens
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS
from embedgrpc.models.kinds import Activation, RerankMethod, Truncation
from embedgrpc.models.tokenizers.tokenizer import Tokenizer, TokenSequence
from embedgrpc.models.tokenizers.truncation import TokenLimitError


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """Scores documents with a model that reads query and document together.

    Attributes:
        properties: The model's properties.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: Maximum characters of a text to tokenize.
    """

    properties: ModelProperties
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int

    @property
    def method(self) -> RerankMethod:
        """The method of scoring."""
        return RerankMethod.CROSS_ENCODER

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
        inputs = self._inputs(query, documents, spec, documents_bytes, atomic=not partial)
        try:
            result = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = f"documents[{error.index}]"
            raise
        if any(failure.field == QUERY_FIELD for failure in result.errors.values()):
            # Every pair has the same failure.
            raise result.errors[0]
        positions, rows = result.succeeded()
        scores = rows.by_sequence[LOGITS][:, 0] if positions else np.empty(0, np.float32)
        return rank(
            self._score(scores, spec.scale),
            positions=positions,
            sequences=[one for one in (result.job.sequences[index] for index in positions) if one],
            query=None,
            failures=result.errors,
        )

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Score a health check's text against itself, bypassing admission; float32 [1, 1]."""
        spec = RerankSpec(scale=ScoreScale.RAW, truncation=Truncation.END, max_tokens=0)
        inputs = self._inputs(text, [text], spec, len(text), atomic=True)
        rows = await self.pipeline.probe(inputs, call)
        return rows.by_sequence[LOGITS]

    def _inputs(
        self,
        query: str,
        documents: Sequence[str],
        spec: RerankSpec,
        documents_bytes: int,
        *,
        atomic: bool,
    ) -> Inputs:
        # Every pair contains the query.
        queries_bytes = min(len(query), self.max_characters) * len(documents)
        read_limit = None
        if spec.truncation is not Truncation.NONE:
            read_limit = ReadLimit(
                spec.max_tokens or self.properties.max_tokens,
                from_end=spec.truncation is Truncation.START,
                with_first=True,
            )
        return Inputs(
            texts=QueryAndDocuments(query, documents),
            check=lambda position, text: self._check_input(position, text, spec),
            sequences=len(documents),
            prepare=lambda results: [
                self._build_pair(results[0], document, spec, field=f"documents[{index}]")
                for index, document in enumerate(results[1:])
            ],
            outputs=(LOGITS,),
            size_bytes=queries_bytes + documents_bytes,
            max_tokens=self.properties.max_tokens,
            atomic=atomic,
            read_limit=read_limit,
        )

    def _check_input(self, position: int, text: str, spec: RerankSpec) -> CheckedText:
        around = self.tokenizer.pair_texts
        checked = check_input(
            position,
            text,
            # A template has its own place for the prompt.
            spec if around is None else replace(spec, query_prompt="", document_prompt=""),
            self.max_characters,
            collapses_blanks=self.tokenizer.collapses_blanks,
        )
        if around is None:
            return checked
        instruction = spec.query_prompt
        if spec.document_prompt if position else instruction and around.instructed is None:
            kind = "a document's prompt" if position else "an instruction"
            raise errors.UnsupportedError(
                f"the model renders pairs with a chat template, which has no place for {kind}",
                field=QUERY_FIELD,
            )
        if position:
            return CheckedText(around.around_document(checked.text), cut=checked.cut)
        return CheckedText(around.around_query(checked.text, instruction), cut=checked.cut)

    def _build_pair(
        self, query: TokenizeResult, document: TokenizeResult, spec: RerankSpec, *, field: str
    ) -> TokenSequence | errors.EngineError:
        if isinstance(query, errors.EngineError):
            return query
        if isinstance(document, errors.EngineError):
            return document
        try:
            kept = document.ids
            if spec.max_tokens:
                kept = self.tokenizer.cut_document(kept, spec.max_tokens, spec.truncation)
            pair = self.tokenizer.build_pair(
                query.ids,
                kept,
                max_tokens=self.properties.max_tokens,
                truncation=spec.truncation,
            )
        except TokenLimitError as error:
            alone = len(query.ids) >= self.properties.max_tokens
            return too_many_tokens(error, field=QUERY_FIELD if alone else field)
        return replace(
            pair,
            token_count_before=pair.token_count_before + len(document.ids) - len(kept),
            characters_cut=query.characters_cut or document.characters_cut,
        )

    def _score(self, logits: FloatArray, scale: ScoreScale) -> FloatArray:
        raw = self.properties.activation is Activation.IDENTITY
        if scale is ScoreScale.RAW or (scale is ScoreScale.MODEL and raw):
            return logits
        # In float32 whatever the model's type: in half precision, good scores tie at 1. Each form
        # of the sigmoid is exact where the other overflows.
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
