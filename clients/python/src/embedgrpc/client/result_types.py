"""What calls return: plain, frozen, as numpy arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.enums import Encoding
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.vectors import MultiVector, SparseVector, Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The embeddings of a batch of texts, in the order of the texts.

    `len()` counts the texts, an index gives rows of `vectors`, and `numpy.asarray` gives
    `vectors` itself.

    Attributes:
        vectors: [texts, dimensions]: float32 for "float32", "float16" and "bfloat16"; the raw
            int8 for "int8"; for "ubinary" uint8 [texts, ceil(dimensions / 8)], as
            `numpy.packbits` writes sign bits. float32 [texts, 0] when no dense vectors were
            asked for.
        scales: float32 [texts] for "int8": `vectors * scales[:, None]` restores the numbers.
            None in every other encoding.
        encoding: How the dense vectors were written; "float32" when there are none.
        dimensions: How many numbers a dense vector stands for.
        sparse: One for each text; empty when none were asked for.
        multi_vectors: One for each text; empty when none were asked for.
        token_counts: int32 [texts]; tokens the model read.
        truncated: bool [texts]; whether the text was cut to fit.
        model: Id of the model that answered.
        revision: Its revision.
        fingerprint: Identifies the embedding space; vectors of different ones do not mix.
        input_tokens: Tokens the model read for the whole call.
    """

    vectors: Vectors
    scales: NDArray[np.float32] | None
    encoding: Encoding
    dimensions: int
    sparse: Sequence[SparseVector]
    multi_vectors: Sequence[MultiVector]
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    model: str
    revision: str
    fingerprint: str
    input_tokens: int

    def to_float32(self) -> NDArray[np.float32]:
        """Gives the dense vectors as numbers.

        Returns:
            float32 [texts, dimensions].

        Raises:
            ValueError: The encoding is "ubinary": only signs are left, and
                `numpy.unpackbits(vectors, axis=1, count=dimensions)` gives those.
        """
        if self.encoding == "ubinary":
            raise ValueError("ubinary vectors hold signs, not numbers; see numpy.unpackbits")
        if self.scales is not None:
            return self.vectors.astype(np.float32) * self.scales[:, None]
        return self.vectors.astype(np.float32, copy=False)

    def __len__(self) -> int:
        return len(self.token_counts)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows: NDArray[Any] = self.vectors[index]
        return rows

    def __array__(
        self,
        dtype: Any = None,
        copy: bool | None = None,  # noqa: FBT001 -- numpy's protocol
    ) -> NDArray[Any]:
        return np.array(self.vectors, dtype=dtype, copy=copy)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and its score.

    Attributes:
        index: Position among the documents that were sent, from 0.
        score: Higher is more relevant.
        document: The document when it was asked for, else "".
        truncated: Whether the document was cut to fit.
    """

    index: int
    score: float
    document: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents with their scores, best first; a sequence of `results`.

    Attributes:
        results: The documents; equal scores keep the order in which they were sent.
        model: Id of the model that answered.
        revision: Its revision.
        fingerprint: Identifies what the scores come from; those of different ones do not
            compare.
        input_tokens: Tokens the model read for the call.
    """

    results: Sequence[RankedDocument]
    model: str
    revision: str
    fingerprint: str
    input_tokens: int

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.results)

    def __getitem__(self, index: int) -> RankedDocument:
        return self.results[index]


@dataclass(frozen=True, slots=True)
class StreamReady:
    """The terms of a stream.

    Attributes:
        model: Id of the model that answers.
        revision: Its revision.
        fingerprint: Identifies the embedding space; vectors of different ones do not mix.
        dimensions: The length of dense vectors.
        max_in_flight_inputs: The most inputs that the server takes in before it must have
            answered some.
        max_batch_inputs: The most inputs in one message.
    """

    model: str
    revision: str
    fingerprint: str
    dimensions: int
    max_in_flight_inputs: int
    max_batch_inputs: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """What became of one input of a stream.

    Attributes:
        id: The caller's own, as it was given; or the position of the text as a decimal str.
        vector: As one row of `Embeddings.vectors`; None after an error, or when no dense
            vectors were asked for.
        scale: Restores "int8" numbers: `vector * scale`; 1.0 in every other encoding.
        sparse: None when it was not asked for.
        multi_vector: None when it was not asked for.
        token_count: Tokens the model read.
        truncated: Whether the text was cut to fit.
        error: Why there is no embedding, ready to be raised; None when there is one.
    """

    id: Any
    vector: Vectors | None = None
    scale: float = 1.0
    sparse: SparseVector | None = None
    multi_vector: MultiVector | None = None
    token_count: int = 0
    truncated: bool = False
    error: EmbedGrpcError | None = None
