"""Scores documents with a cross-encoder, which reads query and document together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, Pipeline
from embedgrpc.engine.results.scores import scores_of
from embedgrpc.engine.tasks.pairs import build_pair, wrap_text
from embedgrpc.engine.tasks.reranking import (
    QUERY_FIELD,
    QueryAndDocuments,
    Ranking,
    RerankSpec,
    ScoreScale,
    check_input,
    rank,
)
from embedgrpc.engine.tokenizing.jobs import Pairing, ReadLimit
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS
from embedgrpc.models.kinds import Activation, RerankMethod, Truncation
from embedgrpc.models.tokenizers.tokenizer import Tokenizer


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
                pairing=Pairing.WITH_FIRST,
            )
        return Inputs(
            texts=QueryAndDocuments(query, documents),
            check=lambda position, text: self._check_input(position, text, spec),
            sequences=len(documents),
            prepare=lambda results: [
                build_pair(
                    self.tokenizer,
                    results[0],
                    document,
                    max_tokens=self.properties.max_tokens,
                    truncation=spec.truncation,
                    first_field=QUERY_FIELD,
                    field=f"documents[{index}]",
                    second_max_tokens=spec.max_tokens,
                )
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
        return wrap_text(self.tokenizer, checked, prompt=instruction, is_second=position > 0)

    def _score(self, logits: FloatArray, scale: ScoreScale) -> FloatArray:
        match scale:
            case ScoreScale.RAW:
                return logits
            case ScoreScale.SIGMOID:
                return scores_of(logits, Activation.SIGMOID)
            case ScoreScale.MODEL:
                return scores_of(logits, self.properties.activation)
