"""Embeds texts with one model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import FloatArray, IntArray
from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, Pipeline, Running
from embedgrpc.engine.texts import CheckedText, check_text
from embedgrpc.engine.vectors import shorten
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.models.metadata import ModelMetadata
from embedgrpc.models.outputs import POOLED_EMBEDDING, SENTENCE_EMBEDDING
from embedgrpc.models.tokenizer import Tokenizer, TokenLimitError, TokenSequence, Truncation


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """How texts are embedded.

    Attributes:
        prompt: What is put in front of each text.
        dimensions: Length of the vectors, at most the model's.
        normalize: Whether they get unit length.
        truncation: What to do with a text that is too long.
        max_tokens: The most tokens of a text, at most the model's.
    """

    prompt: str
    dimensions: int
    normalize: bool
    truncation: Truncation
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What the model says of some texts.

    Attributes:
        vectors: float32 [texts, dimensions].
        token_counts: int32 [texts]; tokens that the model read.
        truncated: bool [texts]; whether the text was cut to fit.
    """

    vectors: FloatArray
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors.

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
            sink: Takes raw rows, to be given to `finish`.

        Returns:
            The job, to be cancelled when nobody waits for it any more.
        """
        return await self.pipeline.submit(
            self._inputs(checked, spec, field="text", atomic=False), call, sink
        )

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Embeds a health check's text past admission; float32 [1, width]."""
        spec = EmbedSpec(
            prompt="",
            dimensions=self.metadata.dimensions,
            normalize=self.metadata.normalize,
            truncation=Truncation.END,
            max_tokens=self.metadata.max_tokens,
        )
        checked = [self.check(text, spec, field="text")]
        inputs = self._inputs(checked, spec, field="text", atomic=True)
        return await self.pipeline.probe(inputs, call)

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

    def has_no_direction(self, rows: FloatArray, spec: EmbedSpec) -> NDArray[np.bool_]:
        """Tells which rows, float32 [texts, width], are zeros that should get unit length."""
        if not spec.normalize:
            return np.zeros(len(rows), np.bool_)
        return np.asarray(~rows[:, : spec.dimensions].any(axis=1))

    def finish(
        self,
        job: Job,
        checked: Sequence[CheckedText],
        indices: Sequence[int],
        rows: FloatArray,
        spec: EmbedSpec,
    ) -> Embeddings:
        """Makes embeddings of some rows of a job.

        Args:
            job: The job.
            checked: All its texts.
            indices: Whose rows these are.
            rows: float32 [len(indices), width] of the model's output, all with a direction.
            spec: What was asked.

        Returns:
            One row per index.
        """
        sequences = [job.sequences[index] for index in indices]
        return Embeddings(
            vectors=self._shorten(rows, spec),
            token_counts=np.array([len(one.input_ids) for one in sequences if one], np.int32),
            truncated=np.array(
                [
                    one.truncated or checked[index].cut
                    for index, one in zip(indices, sequences, strict=True)
                    if one
                ],
                np.bool_,
            ),
        )

    def _shorten(self, rows: FloatArray, spec: EmbedSpec) -> FloatArray:
        as_is = spec.dimensions == rows.shape[1] and spec.normalize == (
            self._output(spec) == SENTENCE_EMBEDDING and self.metadata.normalize
        )
        if as_is:
            return rows
        return shorten(rows, dimensions=spec.dimensions, normalize=spec.normalize)

    def _output(self, spec: EmbedSpec) -> str:
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
            output=self._output(spec),
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


def too_many_tokens(error: TokenLimitError, *, field: str) -> errors.InputTooLongError:
    """Tells the caller that an input has too many tokens and may not be cut."""
    return errors.InputTooLongError(
        f"{field} has {error.token_count} tokens; the limit is {error.max_tokens}",
        field=field,
        metadata={
            "label": "tokens",
            "tokens": str(error.token_count),
            "maxTokens": str(error.max_tokens),
        },
    )
