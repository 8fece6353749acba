"""Embeds texts with one model."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, JobHandle, Pipeline
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.results.sparse import (
    SparseVector,
    from_token_weights,
    from_vocabulary_weights,
)
from embedgrpc.engine.results.vectors import shorten
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.tokenizing.jobs import Reading, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText, check_text, too_many_tokens
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import (
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Representation
from embedgrpc.models.tokenizers.tokenizer import (
    Tokenizer,
    TokenLimitError,
    TokenSequence,
    Truncation,
)

# What is made of embeddings.
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors.

    Attributes:
        properties: What the model is.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: The most characters of a text that are tokenized.
        graph_outputs: What its graph gives.
    """

    properties: ModelProperties
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int
    graph_outputs: Collection[str]

    async def embed(
        self,
        texts: Sequence[str],
        spec: EmbedSpec,
        call: Call,
        *,
        size_bytes: int,
        pack: Callable[[Embeddings], Packed],
        field: str = "texts",
    ) -> Packed:
        """Embeds texts of which every one must succeed.

        Args:
            texts: At least one. Each is asked for when it is needed, and not before.
            spec: How.
            call: For whom.
            size_bytes: About how many bytes of UTF-8 they have together.
            pack: Makes the answer of one embedding per text, in their order. Called off the event
                loop where that takes long.
            field: The request's field that holds them, for errors.

        Returns:
            The answer.

        Raises:
            EngineError: One of them failed, or there is no room or time for them.
        """
        inputs = self._inputs(texts, spec, size_bytes=size_bytes, field=field, atomic=True)
        try:
            job, rows = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = f"{field}[{error.index}]"
            raise

        def finish() -> Packed:
            zero = self.has_no_direction(rows, spec)
            if zero.any():
                raise errors.NonFiniteOutputError(
                    "a vector of zeros has no direction", field=f"{field}[{int(zero.argmax())}]"
                )
            return pack(self.finish(job, range(len(texts)), rows, spec))

        return await asyncio.to_thread(finish) if rows.are_large else finish()

    async def submit(
        self, texts: Sequence[str], spec: EmbedSpec, call: Call, sink: Sink, *, size_bytes: int
    ) -> JobHandle:
        """Starts texts that succeed or fail one by one, as soon as there is room for them.

        Args:
            texts: At least one.
            spec: How.
            call: For whom.
            sink: Takes rows, to be given to `finish`.
            size_bytes: About how many bytes of UTF-8 they have together.

        Returns:
            The job, to be cancelled when nobody waits for it any more.
        """
        inputs = self._inputs(texts, spec, size_bytes=size_bytes, field="text", atomic=False)
        return await self.pipeline.submit(inputs, call, sink)

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Embeds a health check's text past admission; the numbers of its representations."""
        spec = EmbedSpec(
            prompt="",
            dimensions=self.properties.dimensions,
            normalize=self.properties.normalize,
            truncation=Truncation.END,
            max_tokens=self.properties.max_tokens,
            representations=self.properties.representations,
        )
        inputs = self._inputs([text], spec, size_bytes=len(text), field="text", atomic=True)
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

    def has_no_direction(self, rows: OutputRows, spec: EmbedSpec) -> NDArray[np.bool_]:
        """Tells which dense vectors are zeros that should get unit length; bool [texts]."""
        dense = self._dense(rows, spec)
        if dense is None or not spec.normalize:
            counts = [len(part) for part in (*rows.by_sequence.values(), *rows.by_token.values())]
            return np.zeros(counts[0], np.bool_)
        return np.asarray(~dense[:, : spec.dimensions].any(axis=1))

    def finish(
        self,
        job: Job,
        indices: Sequence[int],
        rows: OutputRows,
        spec: EmbedSpec,
    ) -> Embeddings:
        """Makes embeddings of some rows of a job.

        Args:
            job: The job.
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
            truncated=[one.truncated for one in sequences],
        )

    def _dense(self, rows: OutputRows, spec: EmbedSpec) -> FloatArray | None:
        return rows.by_sequence.get(self._dense_output(spec))

    def _shorten(self, dense: FloatArray, spec: EmbedSpec) -> FloatArray:
        as_is = spec.dimensions == dense.shape[1] and spec.normalize == (
            self._dense_output(spec) == SENTENCE_EMBEDDING and self.properties.normalize
        )
        if as_is:
            return dense
        return shorten(dense, dimensions=spec.dimensions, normalize=spec.normalize)

    def _sparse(
        self, rows: OutputRows, sequences: Sequence[TokenSequence], spec: EmbedSpec
    ) -> list[SparseVector] | None:
        if TOKEN_WEIGHTS in rows.by_token:
            vectors = [
                from_token_weights(weights, one.input_ids, self.properties.unweighted_token_ids)
                for weights, one in zip(rows.by_token[TOKEN_WEIGHTS], sequences, strict=True)
            ]
        elif VOCABULARY_WEIGHTS in rows.by_sequence:
            vectors = [from_vocabulary_weights(row) for row in rows.by_sequence[VOCABULARY_WEIGHTS]]
        else:
            return None
        if not spec.max_sparse_terms:
            return vectors
        return [vector.heaviest(spec.max_sparse_terms) for vector in vectors]

    def _multi_vectors(self, rows: OutputRows) -> list[FloatArray] | None:
        if TOKEN_EMBEDDINGS not in rows.by_token:
            return None
        skip = self.properties.multi_vector_skip_tokens
        return [vectors[skip:] for vectors in rows.by_token[TOKEN_EMBEDDINGS]]

    def outputs(self, spec: EmbedSpec) -> tuple[str, ...]:
        """Names the graph's outputs that the representations are made of."""
        return tuple(self._output(one, spec) for one in spec.representations)

    def _output(self, representation: Representation, spec: EmbedSpec) -> str:
        match representation:
            case Representation.DENSE:
                return self._dense_output(spec)
            case Representation.SPARSE:
                return VOCABULARY_WEIGHTS if self.properties.splade else TOKEN_WEIGHTS
            case Representation.MULTI_VECTOR:
                return TOKEN_EMBEDDINGS

    def _dense_output(self, spec: EmbedSpec) -> str:
        """The vectors before Normalize where the model normalises and the caller does not."""
        if self.properties.normalize and not spec.normalize:
            return POOLED_EMBEDDING
        return SENTENCE_EMBEDDING

    def _inputs(
        self,
        texts: Sequence[str],
        spec: EmbedSpec,
        *,
        size_bytes: int,
        field: str,
        atomic: bool,
    ) -> Inputs:
        def name(index: int) -> str:
            return f"{field}[{index}]" if atomic else field

        def check(index: int, text: str) -> CheckedText:
            checked = check_text(
                text,
                max_characters=self.max_characters,
                truncation=spec.truncation,
                field=name(index),
            )
            if not spec.prompt:
                return checked
            return CheckedText(spec.prompt + checked.text, cut=checked.cut)

        def prepare(outcomes: list[TokenizeResult]) -> list[TokenSequence | errors.EngineError]:
            return [
                self.frame(
                    one,
                    max_tokens=spec.max_tokens,
                    truncation=spec.truncation,
                    field=name(index),
                )
                for index, one in enumerate(outcomes)
            ]

        return Inputs(
            texts=texts,
            check=check,
            sequences=len(texts),
            prepare=prepare,
            outputs=self.outputs(spec),
            size_bytes=size_bytes + len(spec.prompt) * len(texts),
            max_tokens=spec.max_tokens,
            atomic=atomic,
            reading=reading_of(spec),
        )

    def frame(
        self, outcome: TokenizeResult, *, max_tokens: int, truncation: Truncation, field: str
    ) -> TokenSequence | errors.EngineError:
        """Makes a sequence of a tokenized text, or tells why there is none.

        Args:
            outcome: What became of the text.
            max_tokens: The longest sequence, special tokens included.
            truncation: Which end to cut.
            field: Its place in the request, for errors.
        """
        if isinstance(outcome, errors.EngineError):
            return outcome
        try:
            sequence = self.tokenizer.build_sequence(
                outcome.ids, max_tokens=max_tokens, truncation=truncation
            )
        except TokenLimitError as error:
            return too_many_tokens(error, field=field)
        return replace(sequence, characters_cut=True) if outcome.characters_cut else sequence


def reading_of(spec: EmbedSpec) -> Reading | None:
    """Tells how much of each text is read."""
    if spec.truncation is Truncation.NONE:
        # A refusal tells how many tokens there are.
        return None
    return Reading(spec.max_tokens, from_end=spec.truncation is Truncation.START)
