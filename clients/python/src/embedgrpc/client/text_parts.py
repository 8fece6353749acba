"""The vectors of parts of a text: its tokens, and its chunks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.errors import BadResponseError
from embedgrpc.client.vectors import Vectors, decode_multi_vector, show_shape
from embedgrpc.v1 import embedding_service_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """The vectors of the tokens of one text. All fields have one entry for each token.

    Special tokens and those of the prompt are not of the text: they start and end at 0.

    Attributes:
        vectors: [tokens, values], as `MultiVector.values`.
        scales: As `MultiVector.scales`.
        ids: int32 [tokens]; ids in the vocabulary.
        character_starts: int32 [tokens]; `text[start:end]` is the text of a token.
        character_ends: int32 [tokens].
        byte_starts: int32 [tokens]; the same in bytes of UTF-8.
        byte_ends: int32 [tokens].
        special: bool [tokens]; whether the model puts the token around a text.
        of_prompt: bool [tokens]; whether the token is of the prompt.
    """

    vectors: Vectors
    scales: NDArray[np.float32] | None
    ids: NDArray[np.int32]
    character_starts: NDArray[np.int32]
    character_ends: NDArray[np.int32]
    byte_starts: NDArray[np.int32]
    byte_ends: NDArray[np.int32]
    special: NDArray[np.bool_]
    of_prompt: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenVectors({show_shape(self.vectors)})"


@dataclass(frozen=True, slots=True, eq=False)
class ChunkVectors:
    """The vectors of the chunks of one text. All fields have one entry for each chunk.

    Attributes:
        vectors: [chunks, dimensions], as `MultiVector.values`.
        scales: As `MultiVector.scales`.
        character_starts: int32 [chunks]; `text[start:end]` is the text of a chunk.
        character_ends: int32 [chunks].
        byte_starts: int32 [chunks]; the same in bytes of UTF-8.
        byte_ends: int32 [chunks].
        token_counts: int32 [chunks]; the tokens of each chunk.
    """

    vectors: Vectors
    scales: NDArray[np.float32] | None
    character_starts: NDArray[np.int32]
    character_ends: NDArray[np.int32]
    byte_starts: NDArray[np.int32]
    byte_ends: NDArray[np.int32]
    token_counts: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.token_counts)

    def __repr__(self) -> str:
        return f"ChunkVectors({show_shape(self.vectors)})"


def decode_token_vectors(message: pb.TokenVectors) -> TokenVectors:
    """Decode the vectors of a text's tokens.

    Raises:
        BadResponseError: The sizes of its fields do not match.
    """
    vectors = decode_multi_vector(message.vectors)
    decoded = TokenVectors(
        vectors=vectors.values,
        scales=vectors.scales,
        ids=np.array(message.ids, np.int32),
        character_starts=np.array(message.character_starts, np.int32),
        character_ends=np.array(message.character_ends, np.int32),
        byte_starts=np.array(message.byte_starts, np.int32),
        byte_ends=np.array(message.byte_ends, np.int32),
        special=np.array(message.special, np.bool_),
        of_prompt=np.array(message.of_prompt, np.bool_),
    )
    _require_one_length(decoded, set(TokenVectors.__slots__) - {"scales"})
    return decoded


def decode_chunks(message: pb.ChunkVectors) -> ChunkVectors:
    """Decode the vectors of a text's chunks.

    Raises:
        BadResponseError: The sizes of its fields do not match.
    """
    vectors = decode_multi_vector(message.vectors)
    decoded = ChunkVectors(
        vectors=vectors.values,
        scales=vectors.scales,
        character_starts=np.array(message.character_starts, np.int32),
        character_ends=np.array(message.character_ends, np.int32),
        byte_starts=np.array(message.byte_starts, np.int32),
        byte_ends=np.array(message.byte_ends, np.int32),
        token_counts=np.array(message.token_counts, np.int32),
    )
    _require_one_length(decoded, set(ChunkVectors.__slots__) - {"scales"})
    return decoded


def _require_one_length(decoded: object, fields: Iterable[str]) -> None:
    if len({len(getattr(decoded, name)) for name in fields}) > 1:
        raise BadResponseError("the lists of a text's tokens or chunks differ in length")
