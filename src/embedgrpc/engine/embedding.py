"""Embeds texts with one model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import FloatArray, IntArray
from embedgrpc.engine import errors
from embedgrpc.engine.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.pipeline import Inputs, Pipeline, Running
from embedgrpc.engine.rows import Rows
from embedgrpc.engine.sparse import SparseVector, from_token_weights, from_vocabulary_weights
from embedgrpc.engine.texts import CheckedText, check_text, too_many_tokens
from embedgrpc.engine.vectors import shorten
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.models.kinds import Representation
from embedgrpc.models.metadata import ModelMetadata
from embedgrpc.models.outputs import (
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.tokenizer import Tokenizer, TokenLimitError, TokenSequence, Truncation


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors.

    Attributes:
        metadata: What the model is.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: The most characters of a text that are tokenized.
        graph_outputs: What its graph gives.
    """

    metadata: ModelMetadata
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int
    graph_outputs: Collection[str]

    async def embed(
        self, texts: Sequence[str], spec: EmbedSpec, call: Call, *, field: str = "texts"
    ) -> Embeddings:
        """Embeds texts of which every one must succeed.

        Args:
            texts: At least one.
            spec: How.
            call: For whom.
            field: The request's field that holds them, for errors.

        Returns:
            One row per text, in their order.

        Raises:
            EngineError: One of them failed, or there is no room or time for them.
        """
        checked = [
            self.check(text, spec, field=f"{field}[{index}]") for index, text in enumerate(texts)
        ]
        inputs = self._inputs(checked, spec, field=field, atomic=True)
        try:
            job, rows = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = f"{field}[{error.index}]"
            raise
        zero = self.has_no_direction(rows, spec)
        if zero.any():
            raise errors.NonFiniteOutputError(
                "a vector of zeros has no direction", field=f"{field}[{int(zero.argmax())}]"
            )
        return self.finish(job, checked, range(len(texts)), rows, spec)

    async def submit(
        self, checked: Sequence[CheckedText], spec: EmbedSpec, call: Call, sink: Sink
    ) -> Running:
        """Starts texts that succeed or fail one by one, as soon as there is room for them.

        Args:
            checked: Texts that `check` let pass, at least one.
            spec: How.
            call: For whom.
            sink: Takes rows, to be given to `finish`.

        Returns:
            The job, to be cancelled when nobody waits for it any more.
        """
        return await self.pipeline.submit(
            self._inputs(checked, spec, field="text", atomic=False), call, sink
        )

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Embeds a health check's text past admission; the numbers of its representations."""
        spec = EmbedSpec(
            prompt="",
            dimensions=self.metadata.dimensions,
            normalize=self.metadata.normalize,
            truncation=Truncation.END,
            max_tokens=self.metadata.max_tokens,
            representations=self.metadata.representations,
        )
        checked = [self.check(text, spec, field="text")]
        inputs = self._inputs(checked, spec, field="text", atomic=True)
        rows = await self.pipeline.probe(inputs, call)
        parts = [*rows.by_sequence.values(), *(ragged[0] for ragged in rows.by_token.values())]
        return np.concatenate([np.ravel(part) for part in parts])

    def check_spec(self, spec: EmbedSpec, *, field: str) -> None:
        """Refuses what the model's graph does not give.

        Raises:
            UnsupportedError: The vectors cannot be had without unit length.
        """
        if not set(self.outputs(spec)) <= set(self.graph_outputs):
            raise errors.UnsupportedError(
                "the model's graph gives only normalised vectors",
                field=f"{field}.normalize",
                metadata={"label": "missing_normalize"},
            )

    def check(self, text: str, spec: EmbedSpec, *, field: str) -> CheckedText:
        """Checks a text and puts the prompt in front.

        Raises:
            EmptyInputError: It holds no text.
            InputTooLongError: It has too many characters and may not be cut.
        """
        checked = check_text(
            text, max_characters=self.max_characters, truncation=spec.truncation, field=field
        )
        return CheckedText(spec.prompt + checked.text, cut=checked.cut) if spec.prompt else checked

    def has_no_direction(self, rows: Rows, spec: EmbedSpec) -> NDArray[np.bool_]:
        """Tells which dense vectors are zeros that should get unit length; bool [texts]."""
        dense = self._dense(rows, spec)
        if dense is None or not spec.normalize:
            counts = [len(part) for part in (*rows.by_sequence.values(), *rows.by_token.values())]
            return np.zeros(counts[0], np.bool_)
        return np.asarray(~dense[:, : spec.dimensions].any(axis=1))

    def finish(
        self,
        job: Job,
        checked: Sequence[CheckedText],
        indices: Sequence[int],
        rows: Rows,
        spec: EmbedSpec,
    ) -> Embeddings:
        """Makes embeddings of some rows of a job.

        Args:
            job: The job.
            checked: All its texts.
            indices: Whose rows these are.
            rows: The rows; dense ones all have a direction.
            spec: What was asked.

        Returns:
            One embedding per index.
        """
        sequences = [one for one in (job.sequences[index] for index in indices) if one]
        dense = self._dense(rows, spec)
        return Embeddings(
            vectors=None if dense is None else self._shorten(dense, spec),
            sparse=self._sparse(rows, sequences, spec),
            multi_vectors=self._multi_vectors(rows),
            token_counts=[len(one.input_ids) for one in sequences],
            truncated=[
                one.truncated or checked[index].cut
                for index, one in zip(indices, sequences, strict=True)
            ],
        )

    def _dense(self, rows: Rows, spec: EmbedSpec) -> FloatArray | None:
        return rows.by_sequence.get(self._dense_output(spec))

    def _shorten(self, dense: FloatArray, spec: EmbedSpec) -> FloatArray:
        as_is = spec.dimensions == dense.shape[1] and spec.normalize == (
            self._dense_output(spec) == SENTENCE_EMBEDDING and self.metadata.normalize
        )
        if as_is:
            return dense
        return shorten(dense, dimensions=spec.dimensions, normalize=spec.normalize)

    def _sparse(
        self, rows: Rows, sequences: Sequence[TokenSequence], spec: EmbedSpec
    ) -> list[SparseVector] | None:
        if TOKEN_WEIGHTS in rows.by_token:
            vectors = [
                from_token_weights(weights, one.input_ids, self.metadata.unweighted_token_ids)
                for weights, one in zip(rows.by_token[TOKEN_WEIGHTS], sequences, strict=True)
            ]
        elif VOCABULARY_WEIGHTS in rows.by_sequence:
            vectors = [from_vocabulary_weights(row) for row in rows.by_sequence[VOCABULARY_WEIGHTS]]
        else:
            return None
        if not spec.max_sparse_terms:
            return vectors
        return [vector.heaviest(spec.max_sparse_terms) for vector in vectors]

    def _multi_vectors(self, rows: Rows) -> list[FloatArray] | None:
        if TOKEN_EMBEDDINGS not in rows.by_token:
            return None
        skip = self.metadata.multi_vector_skip_tokens
        return [vectors[skip:] for vectors in rows.by_token[TOKEN_EMBEDDINGS]]

    def outputs(self, spec: EmbedSpec) -> tuple[str, ...]:
        """Names the graph's outputs that the representations are made of."""
        return tuple(self._output(one, spec) for one in spec.representations)

    def _output(self, representation: Representation, spec: EmbedSpec) -> str:
        match representation:
            case Representation.DENSE:
                return self._dense_output(spec)
            case Representation.SPARSE:
                return VOCABULARY_WEIGHTS if self.metadata.splade else TOKEN_WEIGHTS
            case Representation.MULTI_VECTOR:
                return TOKEN_EMBEDDINGS

    def _dense_output(self, spec: EmbedSpec) -> str:
        """The vectors before Normalize where the model normalises and the caller does not."""
        if self.metadata.normalize and not spec.normalize:
            return POOLED_EMBEDDING
        return SENTENCE_EMBEDDING

    def _inputs(
        self, checked: Sequence[CheckedText], spec: EmbedSpec, *, field: str, atomic: bool
    ) -> Inputs:
        def prepare(ids: list[IntArray]) -> list[TokenSequence | errors.EngineError]:
            return [
                self._frame(one, spec, field=f"{field}[{index}]" if atomic else field)
                for index, one in enumerate(ids)
            ]

        return Inputs(
            texts=checked,
            sequences=len(checked),
            prepare=prepare,
            outputs=self.outputs(spec),
            characters=sum(len(one.text) for one in checked),
            max_tokens=spec.max_tokens,
            atomic=atomic,
        )

    def _frame(
        self, ids: IntArray, spec: EmbedSpec, *, field: str
    ) -> TokenSequence | errors.EngineError:
        try:
            return self.tokenizer.frame(ids, max_tokens=spec.max_tokens, truncation=spec.truncation)
        except TokenLimitError as error:
            return too_many_tokens(error, field=field)
