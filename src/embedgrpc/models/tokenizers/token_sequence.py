"""A text or pair as token ids."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.text_chunks import TextChunks
from embedgrpc.models.tokenizers.tokenized_text import TokenPlaces


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A tokenized text or pair, ready for a model.

    Attributes:
        input_ids: int64 [tokens], special tokens included.
        token_type_ids: int64 [tokens]; None if all are 0.
        token_count_before: Tokens before truncation, special tokens included; for a text that was
            not tokenized completely, a number above the limit.
        characters_cut: Whether part of the text was dropped before tokenizing.
        document_tokens: The tokens of the document in a pair, without special tokens.
        task: The task that the graph computes, if the model has several.
        prompt_tokens: Tokens at the start that are not pooled, if the model leaves out prompts.
        unattended: The number of tokens at the end that the others do not see, although they have
            vectors.
        places: Where the tokens stand in the text; None unless they were asked for.
        chunks: The chunks whose vectors are wanted; None unless they were asked for.
        compared: bool [tokens]; the tokens whose vectors count in late interaction. None for all.
    """

    input_ids: IntArray
    token_type_ids: IntArray | None
    token_count_before: int
    characters_cut: bool = False
    document_tokens: int = 0
    task: int = 0
    prompt_tokens: int = 0
    unattended: int = 0
    places: TokenPlaces | None = None
    chunks: TextChunks | None = None
    compared: NDArray[np.bool_] | None = None

    @property
    def truncated(self) -> bool:
        """Whether the text was truncated."""
        return self.characters_cut or self.token_count_before > len(self.input_ids)
