"""Completes the sequences of queries and documents for a model of late interaction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.late_interaction import LateInteraction
from embedgrpc.models.kinds import TextRole
from embedgrpc.models.tokenizers.added_tokens import TokenizerSettings
from embedgrpc.models.tokenizers.token_sequence import TokenSequence

# The roles of the tokens that fill up queries, the preferred first. Source: PyLate.
_EXPANSION_ROLES = ("mask_token", "eos_token")
# Classes that pad on the left if no file names a side. Source: transformers.
_LEFT_CLASSES = frozenset(
    {"CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"}
)


@dataclass(frozen=True, slots=True)
class RoleTokens:
    """The tokens that a model of late interaction adds to texts and leaves out of results.

    Attributes:
        late: What the model's files say.
        expansion_id: The token that fills up queries.
        skipped_ids: int64 [tokens]; the tokens whose vectors are left out.
    """

    late: LateInteraction
    expansion_id: int
    skipped_ids: IntArray

    @classmethod
    def read(
        cls,
        tokenizer: tokenizers.Tokenizer,
        settings: TokenizerSettings,
        late: LateInteraction,
        *,
        place: str,
    ) -> "RoleTokens":
        """Find the tokens in a vocabulary. Words that it lacks are not left out of results.

        Args:
            tokenizer: The tokenizer, with all added tokens.
            settings: What the other files say about it.
            late: What the model's files say.
            place: The backbone's folder, for messages.

        Raises:
            ModelError: The vocabulary lacks the token that fills up queries.
        """
        names = settings.names()
        unknown = names.get("unk_token")
        found = (_find(tokenizer, word, unknown) for word in late.mask.words)
        skipped = np.array([one for one in found if one is not None], np.int64)
        if late.expansion is None:
            return cls(late, 0, skipped)
        if settings.class_name in _LEFT_CLASSES and "padding_side" not in settings.values.values:
            raise ModelError(
                f"{settings.values.path}: {settings.class_name} fills up queries from the left, "
                "which is not supported: set padding_side to right there if the model was trained "
                "so"
            )
        roles = (names[role] for role in _EXPANSION_ROLES if role in names)
        token = late.expansion.token or next(roles, "")
        expansion_id = _find(tokenizer, token, unknown) if token else None
        if expansion_id is None:
            raise ModelError(
                f"{place}: the tokenizer has no token {token!r} to fill up queries with: "
                "query_expansion.token names it, or else mask_token in tokenizer_config.json"
            )
        return cls(late, expansion_id, skipped)

    def complete(self, sequence: TokenSequence, role: TextRole) -> TokenSequence:
        """Fill up a query, and choose the tokens whose vectors count."""
        missing = max(0, self.late.min_tokens(role) - len(sequence.input_ids))
        ids = np.concatenate([sequence.input_ids, np.full(missing, self.expansion_id, np.int64)])
        types = sequence.token_type_ids
        if types is not None:
            types = np.concatenate([types, np.zeros(missing, np.int64)])
        expansion = self.late.expansion
        unattended = missing if expansion is not None and not expansion.attended else 0
        compared = np.ones(len(ids), np.bool_)
        if unattended and not self.late.compares_expansion:
            compared[len(ids) - unattended :] = False
        if role in self.late.mask.roles and len(self.skipped_ids):
            compared &= ~np.isin(ids, self.skipped_ids)
        return replace(
            sequence,
            input_ids=ids,
            token_type_ids=types,
            token_count_before=sequence.token_count_before + missing,
            unattended=unattended,
            compared=None if compared.all() else compared,
        )


def add_markers(tokenizer: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
    """Make each marker in front of a text one token, if the vocabulary has it.

    Args:
        tokenizer: The tokenizer.
        markers: The texts; the first word of each may be the token instead.

    Source: sentence-transformers, `MultiVectorEncoder._register_prefix_tokens`.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    vocabulary = tokenizer.get_vocab()
    missing = []
    for marker in markers:
        for name in (marker, marker.split(maxsplit=1)[0]):
            if name in added or name in vocabulary:
                if tokenizer.encode(name, add_special_tokens=False).tokens != [name]:
                    missing.append(tokenizers.AddedToken(name, normalized=False, special=True))
                break
    tokenizer.add_special_tokens(missing)


def _find(tokenizer: tokenizers.Tokenizer, word: str, unknown: str | None) -> int | None:
    """Return the id of a token; None if the vocabulary lacks it."""
    found: int | None = tokenizer.token_to_id(word)
    if unknown is None or word == unknown:
        return found
    return None if found == tokenizer.token_to_id(unknown) else found
