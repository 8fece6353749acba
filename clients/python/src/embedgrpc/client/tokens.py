"""The tokens of texts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.errors import BadResponseError
from embedgrpc.v1 import tokenizer_service_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """The tokens of one text. All fields have one entry for each token.

    Special tokens and those of the prompt are not of the text: they start and end at 0.

    Attributes:
        ids: int32 [tokens]; ids in the vocabulary.
        tokens: The entries of the vocabulary.
        character_starts: int32 [tokens]; `text[start:end]` is the text of a token.
        character_ends: int32 [tokens].
        byte_starts: int32 [tokens]; the same in bytes of UTF-8.
        byte_ends: int32 [tokens].
        special: bool [tokens]; whether the model puts the token around a text.
        of_prompt: bool [tokens]; whether the token is of the prompt.
    """

    ids: NDArray[np.int32]
    tokens: tuple[str, ...]
    character_starts: NDArray[np.int32]
    character_ends: NDArray[np.int32]
    byte_starts: NDArray[np.int32]
    byte_ends: NDArray[np.int32]
    special: NDArray[np.bool_]
    of_prompt: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenizedText({len(self)} tokens)"


@dataclass(frozen=True, slots=True, eq=False)
class TokenCounts:
    """How many tokens texts have, before truncation.

    Attributes:
        token_counts: int32 [texts].
        total_tokens: Their sum.
        max_tokens: The limit of tokens in an input, as `Model.max_tokens`.
        model: The id of the model.
    """

    token_counts: NDArray[np.int32]
    total_tokens: int
    max_tokens: int
    model: str

    def __len__(self) -> int:
        return len(self.token_counts)


def decode_tokens(response: pb.TokenizeResponse, text_count: int) -> list[TokenizedText]:
    """Decode the response of Tokenize.

    Raises:
        BadResponseError: The number of entries is not that of the texts, or of the tokens.
    """
    _require_count(len(response.texts), text_count)
    return [_decode_text(message) for message in response.texts]


def decode_token_counts(response: pb.CountTokensResponse, text_count: int) -> TokenCounts:
    """Decode the response of CountTokens.

    Raises:
        BadResponseError: The number of entries is not that of the texts.
    """
    _require_count(len(response.token_counts), text_count)
    return TokenCounts(
        token_counts=np.array(response.token_counts, np.int32),
        total_tokens=response.total_tokens,
        max_tokens=response.max_tokens,
        model=response.model,
    )


def _decode_text(message: pb.TokenizedText) -> TokenizedText:
    decoded = TokenizedText(
        ids=np.array(message.ids, np.int32),
        tokens=tuple(message.tokens),
        character_starts=np.array(message.character_starts, np.int32),
        character_ends=np.array(message.character_ends, np.int32),
        byte_starts=np.array(message.byte_starts, np.int32),
        byte_ends=np.array(message.byte_ends, np.int32),
        special=np.array(message.special, np.bool_),
        of_prompt=np.array(message.of_prompt, np.bool_),
    )
    if len({len(getattr(decoded, name)) for name in TokenizedText.__slots__}) > 1:
        raise BadResponseError("the lists of a tokenized text differ in length")
    return decoded


def _require_count(found: int, due: int) -> None:
    if found != due:
        raise BadResponseError(f"{found} entries came back for {due} texts")
