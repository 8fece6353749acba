"""Scores texts, or pairs of texts, by the labels of a classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from embedgrpc.engine import errors
from embedgrpc.engine.pipeline import Inputs, JobHandle, Pipeline
from embedgrpc.engine.results.packing import pack_in_turn
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.results.scores import scores_of
from embedgrpc.engine.tasks.pairs import build_pair, wrap_text
from embedgrpc.engine.tokenizing.jobs import Pairing, ReadLimit, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText, check_text, too_many_tokens
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS
from embedgrpc.models.kinds import Activation, Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import TokenLimitError

# The result of `pack`.
Packed = TypeVar("Packed")
# So many scores are computed and packed in a quarter of a millisecond.
_FEW_SCORES = 512


@dataclass(frozen=True, slots=True)
class ClassifySpec:
    """How to classify.

    Attributes:
        function: What turns logits into scores.
        truncation: The treatment of inputs that are too long.
        max_tokens: Maximum tokens of an input, at most the model's.
    """

    function: Activation
    truncation: Truncation
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Classifications:
    """What became of the inputs of one call.

    Attributes:
        indices: The inputs that did not fail, in order.
        scores: float32 [inputs, labels]; those of the inputs that did not fail.
        token_counts: Tokens that the model read, of each of them.
        truncated: Whether it was cut to fit, of each of them.
        failures: Why the other inputs failed, by index.
    """

    indices: Sequence[int]
    scores: FloatArray
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    failures: Mapping[int, errors.EngineError]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Scores texts and pairs by labels.

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

    async def classify(
        self,
        texts: Sequence[str],
        spec: ClassifySpec,
        call: Call,
        *,
        are_pairs: bool,
        size_bytes: int,
        pack: Callable[[Classifications], Packed],
        partial: bool = False,
    ) -> Packed:
        """Classify the inputs of one call.

        Args:
            texts: At least one; of pairs, the first and the second text in turn. Each is read only
                when it is needed.
            spec: How to classify.
            call: The call they belong to.
            are_pairs: Whether two texts are one input.
            size_bytes: Their approximate UTF-8 size together.
            pack: Makes the response. Called off the event loop if that takes long.
            partial: Whether inputs that fail leave the others unaffected.

        Returns:
            The result of `pack`.

        Raises:
            EngineError: An input failed although all must succeed, or there is no room or time for
                them.
        """
        self.check_form(are_pairs=are_pairs)
        inputs = self._inputs(
            texts, spec, are_pairs=are_pairs, size_bytes=size_bytes, atomic=not partial
        )
        try:
            result = await self.pipeline.run(inputs, call)
        except errors.NonFiniteOutputError as error:
            error.field = f"{'pairs' if are_pairs else 'texts'}[{error.index}]"
            raise

        def finish() -> Packed:
            indices, rows = result.succeeded()
            return pack(self.finish(result.job, indices, rows, spec, failures=result.errors))

        if self.is_slow(inputs.sequences):
            return await pack_in_turn(finish)
        return finish()

    async def submit(
        self,
        texts: Sequence[str],
        spec: ClassifySpec,
        call: Call,
        sink: Sink,
        *,
        are_pairs: bool,
        size_bytes: int,
    ) -> JobHandle:
        """Start inputs that succeed or fail one by one, as soon as there is room for them.

        Args:
            texts: At least one; of pairs, the first and the second text in turn.
            spec: How to classify.
            call: The call they belong to.
            sink: Receives rows, to be passed to `finish`.
            are_pairs: Whether two texts are one input. The model must read this form.
            size_bytes: Their approximate UTF-8 size together.

        Returns:
            A handle, to cancel the job when its results are no longer wanted.
        """
        inputs = self._inputs(
            texts, spec, are_pairs=are_pairs, size_bytes=size_bytes, atomic=False, indexed=False
        )
        return await self.pipeline.submit(inputs, call, sink)

    def finish(
        self,
        job: Job,
        indices: Sequence[int],
        rows: OutputRows,
        spec: ClassifySpec,
        *,
        failures: Mapping[int, errors.EngineError] | None = None,
    ) -> Classifications:
        """Make scores from some rows of a job.

        Args:
            job: The job.
            indices: The inputs that the rows belong to.
            rows: The rows.
            spec: How to classify.
            failures: Why the other inputs failed, by index.
        """
        sequences = [one for one in (job.sequences[index] for index in indices) if one]
        logits = rows.by_sequence[LOGITS] if indices else np.empty((0, 1), np.float32)
        return Classifications(
            indices=indices,
            scores=scores_of(logits, spec.function),
            token_counts=[len(one.input_ids) for one in sequences],
            truncated=[one.truncated for one in sequences],
            failures=failures or {},
        )

    def is_slow(self, inputs: int) -> bool:
        """Whether the scores of so many inputs take long to compute and pack."""
        return inputs * len(self.properties.labels) > _FEW_SCORES

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Return the logits of a health check's text, bypassing admission; float32 [1, labels]."""
        spec = ClassifySpec(Activation.IDENTITY, Truncation.END, self.properties.max_tokens)
        inputs = self._inputs([text], spec, are_pairs=False, size_bytes=len(text), atomic=True)
        rows = await self.pipeline.probe(inputs, call)
        return rows.by_sequence[LOGITS]

    def special_token_count(self, *, are_pairs: bool) -> int:
        """Return the number of special tokens around a text or a pair."""
        if are_pairs:
            return self.tokenizer.pair_special_token_count
        return self.tokenizer.special_token_count

    def check_form(self, *, are_pairs: bool) -> None:
        """Check that the model reads texts, or pairs.

        Raises:
            UnsupportedError: It does not.
        """
        if are_pairs and not self.tokenizer.accepts_pairs:
            raise errors.UnsupportedError(
                "the model's tokenizer has no form for two texts: send texts", field="pairs"
            )
        if not are_pairs and self.tokenizer.pair_texts is not None:
            raise errors.UnsupportedError(
                "the model renders pairs with a chat template, which has no place for a single"
                " text: send pairs",
                field="texts",
            )

    def _inputs(
        self,
        texts: Sequence[str],
        spec: ClassifySpec,
        *,
        are_pairs: bool,
        size_bytes: int,
        atomic: bool,
        indexed: bool = True,
    ) -> Inputs:
        # The reference puts the default prompt in front of the first text, and no other.
        prompt = self.properties.prompts.get(self.properties.default_prompt_name, "")

        def name(index: int, *, whole: bool = False) -> str:
            return _field_of(index, are_pairs=are_pairs, whole=whole, indexed=indexed)

        def check(index: int, text: str) -> CheckedText:
            is_second = are_pairs and index % 2 == 1
            checked = check_text(
                text,
                max_characters=self.max_characters,
                collapses_blanks=self.tokenizer.collapses_blanks,
                truncation=spec.truncation,
                field=name(index),
            )
            return wrap_text(self.tokenizer, checked, prompt=prompt, is_second=is_second)

        read_limit = None
        if spec.truncation is not Truncation.NONE:
            read_limit = ReadLimit(
                spec.max_tokens,
                from_end=spec.truncation is Truncation.START,
                pairing=Pairing.WITH_PREVIOUS if are_pairs else Pairing.NONE,
            )
        count = len(texts) // 2 if are_pairs else len(texts)
        build = self._build_pairs if are_pairs else self._build_singles
        return Inputs(
            texts=texts,
            check=check,
            sequences=count,
            prepare=lambda results: build(results, spec, name),
            outputs=(LOGITS,),
            size_bytes=size_bytes + len(prompt) * count,
            max_tokens=spec.max_tokens,
            atomic=atomic,
            read_limit=read_limit,
        )

    def _build_singles(
        self, results: Sequence[TokenizeResult], spec: ClassifySpec, name: "_Name"
    ) -> list[TokenSequence | errors.EngineError]:
        return [self._build_single(one, spec, name(index)) for index, one in enumerate(results)]

    def _build_single(
        self, result: TokenizeResult, spec: ClassifySpec, field: str
    ) -> TokenSequence | errors.EngineError:
        if isinstance(result, errors.EngineError):
            return result
        try:
            sequence = self.tokenizer.build_sequence(
                result.ids, max_tokens=spec.max_tokens, truncation=spec.truncation
            )
        except TokenLimitError as error:
            return too_many_tokens(error, field=field)
        return replace(sequence, characters_cut=result.characters_cut)

    def _build_pairs(
        self, results: Sequence[TokenizeResult], spec: ClassifySpec, name: "_Name"
    ) -> list[TokenSequence | errors.EngineError]:
        return [
            build_pair(
                self.tokenizer,
                results[index],
                results[index + 1],
                max_tokens=spec.max_tokens,
                truncation=spec.truncation,
                first_field=name(index),
                field=name(index, whole=True),
            )
            for index in range(0, len(results), 2)
        ]


class _Name(Protocol):
    """Names the request's field of a text in the job, or of the pair that it is a part of."""

    def __call__(self, index: int, *, whole: bool = False) -> str: ...


def _field_of(index: int, *, are_pairs: bool, whole: bool, indexed: bool) -> str:
    if not are_pairs:
        return f"texts[{index}]" if indexed else "text"
    pair = f"pairs[{index // 2}]" if indexed else "pair"
    return pair if whole else f"{pair}.{'second' if index % 2 else 'first'}"
