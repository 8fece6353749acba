"""Run a model on texts without a server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import cut_rows
from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.engine.tokenizing.texts import check_text
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.late_interaction import LateInteraction
from embedgrpc.models.graphs.outputs import (
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import TextRole, Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.server.contract.options import prompt_for_role
from embedgrpc.server.loading.prepared_model import PreparedModel

# A text, or a query and a document.
Item = str | tuple[str, str]
# For each output of a model, its result for each item: float32 [values] or [vectors, values].
ModelOutputs = Mapping[str, Sequence[FloatArray]]
# Outputs that others are made of: a fault in them shows there.
_INTERMEDIATE = frozenset({POOLED_EMBEDDING})


class Runner(Protocol):
    """A model that can be run on items: in this process, or by the reference library."""

    @property
    def name(self) -> str:
        """A readable name."""
        ...

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item alone; return the results in order.

        Raises:
            ModelError: The model cannot run them.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """A model that is loaded in this process.

    Attributes:
        name: A readable name.
        max_tokens: The longest sequence to run, at most the model's own limit.
        max_characters: Most characters of a text; a longer one is cut.
        role: The role of the texts, of a model with routes.
        route: The name of the route that they pass; empty for a model without routes.
    """

    name: str
    model: PreparedModel
    max_tokens: int
    max_characters: int
    role: TextRole | None = None
    route: str = ""

    @property
    def prompt(self) -> str:
        """The prompt that the model has for such texts."""
        return prompt_for_role(self.role, self.model.properties)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs to compare: all except intermediate ones."""
        return tuple(one for one in self.model.graph.outputs if one not in _INTERMEDIATE)

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item alone.

        Raises:
            BackendError: The run failed.
        """
        sequences = self.tokenize(items)
        return self.run_batches(sequences, [[index] for index in range(len(sequences))])

    def tokenize(self, items: Sequence[Item]) -> list[TokenSequence]:
        """Tokenize items with the model's default prompt, truncated as the model does it.

        Texts for a model of late interaction are documents first, and then queries.
        """
        properties, tokenizer = self.model.properties, self.model.tokenizer
        prompt = self.prompt
        # A model without a limit refuses texts that are too long; here they are cut.
        truncation = (
            Truncation.END if properties.truncation is Truncation.NONE else properties.truncation
        )
        late = properties.late_interaction
        if late is not None:
            texts = [item for item in items if isinstance(item, str)]
            return [
                sequence
                for role in (TextRole.DOCUMENT, TextRole.QUERY)
                for sequence in self._tokenize_as(role, texts, late)
            ]
        around = tokenizer.pair_texts
        read_pairs = (
            (self._read(first), self._read(second))
            for first, second in (item for item in items if not isinstance(item, str))
        )
        pairs = [
            (
                around.around_query(first, prompt) if around else prompt + first,
                around.around_document(second) if around else second,
            )
            for first, second in read_pairs
        ]
        firsts = tokenizer.encode([first for first, _ in pairs])
        seconds = tokenizer.encode([second for _, second in pairs])
        built_pairs = (
            tokenizer.build_pair(*pair, max_tokens=self.max_tokens, truncation=truncation)
            for pair in zip(firsts, seconds, strict=True)
        )
        singles = tokenizer.encode(
            [
                tokenizer.cut_characters(prompt + self._read(item), self.max_tokens, truncation)
                for item in items
                if isinstance(item, str)
            ]
        )
        built_singles = (
            replace(
                tokenizer.build_sequence(ids, max_tokens=self.max_tokens, truncation=truncation),
                task=properties.default_task,
                prompt_tokens=0
                if properties.include_prompt
                else tokenizer.count_prompt_tokens(prompt, self.max_tokens),
            )
            for ids in singles
        )
        return [next(built_singles if isinstance(item, str) else built_pairs) for item in items]

    def _tokenize_as(
        self, role: TextRole, texts: Sequence[str], late: LateInteraction
    ) -> list[TokenSequence]:
        properties, tokenizer = self.model.properties, self.model.tokenizer
        prompt = properties.prompts.get(role, "")
        return [
            tokenizer.build_sequence(
                ids,
                max_tokens=min(self.max_tokens, late.max_tokens[role]),
                truncation=properties.truncation,
                role=role,
            )
            for ids in tokenizer.encode([prompt + self._read(text) for text in texts])
        ]

    def _read(self, text: str) -> str:
        """Return the part of a text that the server reads."""
        try:
            checked = check_text(
                text,
                max_characters=self.max_characters,
                truncation=self.model.properties.truncation,
                field="a text",
                collapses_blanks=self.model.tokenizer.collapses_blanks,
            )
        except EngineError as error:
            raise ModelError(str(error)) from error
        return checked.text

    def run_batches(
        self, sequences: Sequence[TokenSequence], batches: Iterable[Sequence[int]]
    ) -> ModelOutputs:
        """Run sequences in the given batches.

        Args:
            sequences: Tokenized items.
            batches: Indices of sequences; each index once.

        Returns:
            The results in the order of the sequences.

        Raises:
            BackendError: The run failed.
        """
        properties = self.model.properties
        left = properties.padding_side == "left"
        found: dict[str, dict[int, FloatArray]] = {name: {} for name in self.outputs}
        for indices in batches:
            batch = [sequences[index] for index in indices]
            padded = pad(
                batch, pad_token_id=properties.pad_token_id, left=left, outputs=self.outputs
            )
            rows = cut_rows(
                self.model.backend.run(padded),
                outputs=self.outputs,
                positions=range(len(batch)),
                lengths=[len(sequence.input_ids) for sequence in batch],
                pad_left=left,
            )
            for name in self.outputs:
                values = rows.by_sequence.get(name, rows.by_token.get(name, ()))
                found[name] |= dict(zip(indices, values, strict=True))
        outputs = {name: [rows[index] for index in sorted(rows)] for name, rows in found.items()}
        if properties.weight_table is not None:
            size = properties.sparse_dimensions
            outputs[VOCABULARY_WEIGHTS] = [
                _spread(weights, one.input_ids, size)
                for weights, one in zip(outputs.pop(TOKEN_WEIGHTS), sequences, strict=True)
            ]
        if properties.max_active_dims and VOCABULARY_WEIGHTS in outputs:
            outputs[VOCABULARY_WEIGHTS] = [
                _keep_heaviest(row, properties.max_active_dims)
                for row in outputs[VOCABULARY_WEIGHTS]
            ]
        if properties.truncate_dim:
            kept = [row[: properties.truncate_dim] for row in outputs[SENTENCE_EMBEDDING]]
            outputs[SENTENCE_EMBEDDING] = kept
        if TOKEN_EMBEDDINGS in outputs:
            skipped = properties.multi_vector_skip_tokens
            outputs[TOKEN_EMBEDDINGS] = [
                rows[skipped:] if one.compared is None else rows[one.compared]
                for rows, one in zip(outputs[TOKEN_EMBEDDINGS], sequences, strict=True)
            ]
        return outputs


def _spread(weights: FloatArray, input_ids: IntArray, size: int) -> FloatArray:
    """Put the weights of tokens, float32 [tokens], at their ids; float32 [vocabulary]."""
    row = np.zeros(size, np.float32)
    row[input_ids] = weights
    return row


def _keep_heaviest(weights: FloatArray, count: int) -> FloatArray:
    """Set all weights but the heaviest to 0; float32 [vocabulary]."""
    if count >= len(weights):
        return weights
    kept = np.zeros_like(weights)
    places = np.argpartition(np.abs(weights), -count)[-count:]
    kept[places] = weights[places]
    return kept
