"""Embeds texts with one model."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, JobHandle, Pipeline
from embedgrpc.engine.results.packing import pack_in_turn
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.tasks.chunking import check_chunks
from embedgrpc.engine.tasks.embedding_rows import has_no_direction, outputs_of, read_rows
from embedgrpc.engine.tasks.embeddings import BatchResult, Embeddings, EmbedSpec
from embedgrpc.engine.tasks.token_places import PlaceFinder, find_obstacle, without_places
from embedgrpc.engine.tokenizing.given_ids import check_ids
from embedgrpc.engine.tokenizing.jobs import ReadLimit, Tokenized, TokenizeResult
from embedgrpc.engine.tokenizing.texts import (
    CheckedText,
    TextOrIds,
    check_text,
    too_many_tokens,
)
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import TextRole, Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import TokenLimitError

# Requests to a model name few different limits.
_KNOWN_LIMITS = 64

# The result of `pack`.
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors.

    Attributes:
        properties: The model's properties.
        tokenizer: Its tokenizer.
        pipeline: Runs its sequences.
        max_characters: Maximum characters of a text to tokenize.
        graph_outputs: The outputs of its graph.
        route: The name of the model's route that it computes; empty for a model with one.
    """

    properties: ModelProperties
    tokenizer: Tokenizer
    pipeline: Pipeline
    max_characters: int
    graph_outputs: Collection[str]
    route: str = ""

    @property
    def special_token_count(self) -> int:
        """The special tokens around a text."""
        return self.tokenizer.special_token_count

    async def embed(
        self,
        texts: Sequence[TextOrIds],
        spec: EmbedSpec,
        call: Call,
        *,
        size_bytes: int,
        pack: Callable[[BatchResult], Packed],
        field: str = "texts",
        indexed: bool = True,
        partial: bool = False,
        pack_cost: float = 1.0,
    ) -> Packed:
        """Embed the texts of one call.

        Args:
            texts: At least one. Each is read only when it is needed. The ids of a text's tokens
                give the same embedding as the text.
            spec: How to embed.
            call: The call they belong to.
            size_bytes: Their approximate UTF-8 size together.
            pack: Makes the response. Called off the event loop if that takes long.
            field: The request field that holds the texts, for errors.
            indexed: Whether this field holds several texts.
            partial: Whether texts that fail leave the others unaffected.
            pack_cost: What `pack` takes for a number, in units of its binary form.

        Returns:
            The result of `pack`.

        Raises:
            EngineError: A text failed although all must succeed, or there is no room or time for
                them.
        """
        inputs = self._inputs(
            texts, spec, size_bytes=size_bytes, field=field, indexed=indexed, atomic=not partial
        )
        try:
            result = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = _place(field, error.index, indexed=indexed)
            raise

        def finish() -> Packed:
            indices, rows = result.succeeded()
            failures = dict(result.errors)
            if indices:
                zero = self.has_no_direction(rows, spec)
                if zero is not None:
                    without = [indices[row] for row in zero.nonzero()[0].tolist()]
                    found = [
                        no_direction(_place(field, index, indexed=indexed)) for index in without
                    ]
                    if not partial:
                        found[0].add_others(found[1:])
                        raise found[0]
                    failures.update(zip(without, found, strict=True))
                    kept = (~zero).nonzero()[0].tolist()
                    indices, rows = [indices[row] for row in kept], rows.keep(kept)
            if not indices:
                return pack(BatchResult(None, indices, failures))
            return pack(
                BatchResult(self.finish(result.job, indices, rows, spec), indices, failures)
            )

        at_once = spec.chunking is None and not result.rows.are_large(pack_cost)
        return finish() if at_once else await pack_in_turn(finish)

    async def submit(
        self,
        texts: Sequence[TextOrIds],
        spec: EmbedSpec,
        call: Call,
        sink: Sink,
        *,
        size_bytes: int,
    ) -> JobHandle:
        """Start texts that succeed or fail one by one, as soon as there is room for them.

        Args:
            texts: At least one.
            spec: How to embed.
            call: The call they belong to.
            sink: Receives rows, to be passed to `finish`.
            size_bytes: Their approximate UTF-8 size together.

        Returns:
            A handle, to cancel the job when its results are no longer wanted.
        """
        inputs = self._inputs(
            texts, spec, size_bytes=size_bytes, field="text", indexed=False, atomic=False
        )
        return await self.pipeline.submit(inputs, call, sink)

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Embed a health check's text, bypassing admission; return all numbers, float32 [n]."""
        late = self.properties.late_interaction
        role = TextRole.DOCUMENT if late else None
        spec = EmbedSpec(
            prompt=self.properties.prompts.get(role, "") if role else "",
            dimensions=self.properties.dimensions,
            normalize=self.properties.normalize,
            truncation=Truncation.END,
            max_tokens=late.max_tokens[TextRole.DOCUMENT] if late else self.properties.max_tokens,
            representations=self.properties.representations,
            task=self.properties.default_task,
            role=role,
        )
        inputs = self._inputs(
            [text], spec, size_bytes=len(text), field="text", indexed=False, atomic=True
        )
        rows = await self.pipeline.probe(inputs, call)
        parts = [*rows.by_sequence.values(), *(ragged[0] for ragged in rows.by_token.values())]
        return np.concatenate([np.ravel(part) for part in parts])

    def check_spec(self, spec: EmbedSpec, *, field: str) -> None:
        """Check that the model's graph has the outputs needed.

        Raises:
            UnsupportedError: The graph always scales vectors to unit length.
        """
        if not set(self.outputs(spec)) <= set(self.graph_outputs):
            raise errors.UnsupportedError(
                "the model's graph gives only normalised vectors",
                field=f"{field}.normalize",
            )

    @property
    def has_token_vectors(self) -> bool:
        """Whether the vectors that the model pools can be had."""
        return not self._obstacle

    def token_dimensions(self, *, field: str) -> int:
        """Return the number of values of the vectors that the model pools.

        Args:
            field: The option that asks for them, for the error.

        Raises:
            UnsupportedError: The model cannot return them; the message says what to do.
        """
        if self._obstacle:
            raise errors.UnsupportedError(self._obstacle, field=field)
        return self.properties.token_dimensions

    def check_chunks(self, *, field: str) -> None:
        """Check that a chunk's vector is what the model makes of a text; see the function."""
        check_chunks(self.properties, field=field)

    @property
    def _obstacle(self) -> str:
        return find_obstacle(
            self.properties, self.graph_outputs, has_places=self.tokenizer.locator is not None
        )

    def has_no_direction(self, rows: OutputRows, spec: EmbedSpec) -> NDArray[np.bool_] | None:
        """Return which dense vectors are zero but need unit length; bool [texts], None for none."""
        return has_no_direction(rows, spec, self.properties)

    def finish(
        self,
        job: Job,
        indices: Sequence[int],
        rows: OutputRows,
        spec: EmbedSpec,
    ) -> Embeddings:
        """Make embeddings from some rows of a job.

        Args:
            job: The job.
            indices: The inputs that the rows belong to.
            rows: The rows; no dense vector may lack a direction.
            spec: How to embed.

        Returns:
            One embedding per index.
        """
        sequences = [one for one in (job.sequences[index] for index in indices) if one]
        return read_rows(rows, sequences, spec, self.properties)

    def outputs(self, spec: EmbedSpec) -> tuple[str, ...]:
        """Return the graph outputs that the representations are made of."""
        return outputs_of(spec, self.properties)

    def _inputs(
        self,
        texts: Sequence[TextOrIds],
        spec: EmbedSpec,
        *,
        size_bytes: int,
        field: str,
        indexed: bool,
        atomic: bool,
    ) -> Inputs:
        def name(index: int) -> str:
            return _place(field, index, indexed=indexed)

        max_characters = self.limit_characters(spec.max_tokens, spec.truncation, spec.prompt)
        finder = None
        if spec.token_dimensions:
            finder = PlaceFinder(
                self.tokenizer, texts, spec.prompt, spec.truncation, spec.chunking, name
            )

        def check(index: int, text: TextOrIds) -> CheckedText | Tokenized:
            if not isinstance(text, str):
                known = self.tokenizer.known_ids
                return check_ids(text, known, prompt=spec.prompt, field=name(index))
            checked = check_text(
                text,
                max_characters=max_characters,
                collapses_blanks=self.tokenizer.collapses_blanks,
                truncation=spec.truncation,
                field=name(index),
            )
            if finder is not None:
                checked = finder.receive(index, text, checked)
            if not spec.prompt:
                return checked
            return CheckedText(spec.prompt + checked.text, cut=checked.cut)

        def prepare(results: list[TokenizeResult]) -> list[TokenSequence | errors.EngineError]:
            prompt_tokens = self.count_prompt_tokens(spec.prompt, spec.max_tokens)
            sequences = [
                self.build_sequence(
                    one if finder is None else without_places(one),
                    max_tokens=spec.max_tokens,
                    truncation=spec.truncation,
                    field=name(index),
                    task=spec.task,
                    role=spec.role,
                    prompt_tokens=prompt_tokens,
                )
                for index, one in enumerate(results)
            ]
            if finder is None:
                return sequences
            return [
                finder.add(index, one, sequence)
                for index, (one, sequence) in enumerate(zip(results, sequences, strict=True))
            ]

        return Inputs(
            texts=texts,
            check=check,
            sequences=len(texts),
            prepare=prepare,
            outputs=self.outputs(spec),
            size_bytes=size_bytes + (len(spec.prompt) + spec.min_tokens) * len(texts),
            max_tokens=spec.max_tokens,
            atomic=atomic,
            read_limit=read_limit_of(spec),
            with_places=finder is not None,
        )

    def limit_characters(self, max_tokens: int, truncation: Truncation, prompt: str) -> int:
        """Return how many characters of a text are tokenized at most.

        Args:
            max_tokens: Maximum length, special tokens included.
            truncation: The end to cut, if any.
            prompt: What is put in front of the text. It counts if the reference cuts characters.
        """
        kept = self.tokenizer.characters_per_token * max_tokens
        if not kept or truncation is Truncation.NONE:
            return self.max_characters
        return min(self.max_characters, max(kept - len(prompt), 1))

    def count_prompt_tokens(self, prompt: str, max_tokens: int) -> int:
        """Return how many tokens at the start are not pooled. Tokenizes the prompt."""
        if self.properties.include_prompt:
            return 0
        return self.tokenizer.count_prompt_tokens(prompt, max_tokens)

    def build_sequence(
        self,
        result: TokenizeResult,
        *,
        max_tokens: int,
        truncation: Truncation,
        field: str,
        task: int = 0,
        role: TextRole | None = None,
        prompt_tokens: int = 0,
    ) -> TokenSequence | errors.EngineError:
        """Build a sequence from a tokenized text, or return the error for it.

        Args:
            result: The tokenized text.
            max_tokens: Maximum length, special tokens included.
            truncation: The end to cut, if any.
            field: Its place in the request, for errors.
            task: The task that the graph computes, if the model has several.
            role: What the text is to a model of late interaction.
            prompt_tokens: Tokens at the start that are not pooled.
        """
        if isinstance(result, errors.EngineError):
            return result
        try:
            sequence = self.tokenizer.build_sequence(
                result.ids, max_tokens=max_tokens, truncation=truncation, role=role
            )
        except TokenLimitError as error:
            return too_many_tokens(error, field=field)
        if not len(sequence.input_ids):
            return errors.EmptyInputError(
                f"{field} holds no text: the tokenizer makes no token of it", field=field
            )
        if result.characters_cut or task or prompt_tokens:
            return replace(
                sequence,
                characters_cut=result.characters_cut,
                task=task,
                prompt_tokens=prompt_tokens,
            )
        return sequence


def _place(field: str, index: int, *, indexed: bool) -> str:
    """Return where a text stands in the request, for errors."""
    return f"{field}[{index}]" if indexed else field


def no_direction(field: str) -> errors.NonFiniteOutputError:
    """Return the error of a vector of zeros, which cannot get unit length."""
    return errors.NonFiniteOutputError("a vector of zeros has no direction", field=field)


def read_limit_of(spec: EmbedSpec) -> ReadLimit | None:
    """Return how much of each text is tokenized; None for all of it."""
    if spec.truncation is Truncation.NONE:
        # The error for a text that is too long states its number of tokens.
        return None
    return _limit_reading(spec.max_tokens, from_end=spec.truncation is Truncation.START)


_limit_reading = lru_cache(_KNOWN_LIMITS)(ReadLimit)
