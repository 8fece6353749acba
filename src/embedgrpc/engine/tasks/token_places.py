"""Keeps where the tokens of a job's texts stand, on their way from the texts to sequences."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embedgrpc.engine.errors import EngineError, InvalidRequestError
from embedgrpc.engine.tasks.chunking import Chunking, find_chunks
from embedgrpc.engine.tokenizing.jobs import Tokenized, TokenizeResult
from embedgrpc.engine.tokenizing.received_text import find_received
from embedgrpc.engine.tokenizing.texts import CheckedText, TextOrIds
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import TOKEN_VECTORS
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenized_text import TokenPlaces, assemble
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import cut


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The vectors of a text's tokens.

    Attributes:
        vectors: float32 [tokens, hidden_size].
        places: Which tokens they are, and where they stand.
    """

    vectors: FloatArray
    places: TokenPlaces


@dataclass(frozen=True, slots=True)
class PlaceFinder:
    """The places of the tokens of one job. Used on one tokenizing thread after another.

    Attributes:
        tokenizer: The model's tokenizer.
        texts: The texts as received, or the token ids of some.
        prompt: What is put in front of each.
        truncation: The end to cut.
        chunking: How to cut each text into chunks; None for none.
        name: Returns the field that holds a text, for errors.
    """

    tokenizer: Tokenizer
    texts: Sequence[TextOrIds]
    prompt: str
    truncation: Truncation
    chunking: Chunking | None
    name: Callable[[int], str]
    # Characters before the part that is tokenized, by index; most texts have none.
    _before: dict[int, int] = field(default_factory=dict)

    def receive(self, index: int, text: str, checked: CheckedText) -> CheckedText:
        """Return the text to tokenize instead of a checked one, so that places are right."""
        received, before = find_received(
            text,
            checked,
            truncation=self.truncation,
            collapsed=self.tokenizer.collapses_blanks,
        )
        if before:
            self._before[index] = before
        return received

    def add(
        self, index: int, result: TokenizeResult, sequence: TokenSequence | EngineError
    ) -> TokenSequence | EngineError:
        """Return the sequence of a text with the places of its tokens."""
        if isinstance(sequence, EngineError) or isinstance(result, EngineError):
            return sequence
        special = self.tokenizer.special_ids
        kept = len(sequence.input_ids) - sum(map(len, special))
        text = self.texts[index]
        if not isinstance(text, str):
            # Token ids that were given in place of a text stand nowhere.
            nowhere = np.zeros((len(result.ids), 2), np.int64)
            result = Tokenized(np.column_stack([result.ids, nowhere]), result.characters_cut)
            text = ""
        tokens = assemble(
            [cut(result.ids, kept, self.truncation)],
            special,
            prompt_characters=len(self.prompt),
            shift=self._before.get(index, 0),
        )
        places = TokenPlaces.find(tokens, text)
        if self.chunking is None:
            return replace(sequence, places=places)
        if not text:
            return InvalidRequestError(
                f"{self.name(index)} holds token ids, which have no chunks: send the text",
                field=self.name(index),
            )
        try:
            chunks = find_chunks(self.chunking, index, text, places, text_field=self.name(index))
        except InvalidRequestError as error:
            return error.with_traceback(None)
        return replace(sequence, places=places, chunks=chunks)


def without_places(result: TokenizeResult) -> TokenizeResult:
    """Return a tokenized text with ids alone, int64 [tokens]."""
    if isinstance(result, EngineError) or result.ids.ndim == 1:
        return result
    return Tokenized(np.ascontiguousarray(result.ids[:, 0]), result.characters_cut)


def find_obstacle(
    properties: ModelProperties, graph_outputs: Collection[str], *, has_places: bool
) -> str:
    """Return why a model has no token vectors, and what to do; empty if it has them.

    Args:
        properties: The model's properties.
        graph_outputs: The outputs of its graph.
        has_places: Whether its tokenizer says where tokens stand.
    """
    if not has_places:
        return "the model tokenizes on its own: there are no vectors of its tokens"
    if TOKEN_VECTORS in graph_outputs:
        return ""
    if properties.late_interaction is not None:
        return "the vectors of the model's tokens are its multi-vectors: ask for MULTI_VECTOR"
    if not properties.poolings:
        return "the model has no dense vectors, and so no token vectors that it pools"
    if properties.table is not None:
        return (
            "the model looks its vectors up, so that a token's does not depend on its text: "
            "use a model with an encoder"
        )
    return (
        "the model's graph does not return token vectors: export it with last_hidden_state, or,"
        " if it runs on Triton, write its repository with `embedgrpc triton-repo`"
    )
