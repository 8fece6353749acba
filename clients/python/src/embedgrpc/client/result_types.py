"""The results of calls: frozen dataclasses of numpy arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.enums import Encoding
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.server_description import Limits
from embedgrpc.client.text_parts import ChunkVectors, TokenVectors
from embedgrpc.client.vectors import MultiVector, SparseVector, Vectors, show_shape

_SHOWN_RANKED: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The embeddings of a batch of texts, in the order of the texts.

    `len()` counts the texts, an index selects rows of `vectors`, and `numpy.asarray` returns
    `vectors`.

    Attributes:
        vectors: [texts, dimensions]: float32 for "float32", "float16" and "bfloat16"; the raw
            int8 for "int8"; for "ubinary" uint8 [texts, ceil(dimensions / 8)], sign bits as
            `numpy.packbits` writes them. float32 [texts, 0] if the call asked for no dense
            vectors.
        scales: float32 [texts] for "int8": `vectors * scales[:, None]` restores the numbers.
            None in every other encoding.
        encoding: The encoding of the dense vectors; "float32" if there are none.
        dimensions: The length of a dense vector, in numbers.
        sparse: One for each text; empty if the call asked for none.
        multi_vectors: One for each text; empty if the call asked for none.
        token_counts: int32 [texts]; the tokens of each text.
        truncated: bool [texts]; whether each text was cut to fit.
        model: The id of the model that ran.
        revision: Its revision.
        fingerprint: The id of the embedding space. Never mix vectors of different ones.
        input_tokens: The tokens of the whole call.
        token_vectors: The vectors of the tokens, one entry for each text; empty if the call asked
            for none.
        chunks: The vectors of the chunks, one entry for each text; empty if the call asked for
            none.
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
    token_vectors: Sequence[TokenVectors] = ()
    chunks: Sequence[ChunkVectors] = ()

    def __repr__(self) -> str:
        parts = [show_shape(self.vectors)]
        parts += [f"{len(self.sparse)} sparse"] if self.sparse else []
        parts += [f"{len(self.multi_vectors)} multi-vectors"] if self.multi_vectors else []
        parts += [f"token vectors of {len(self.token_vectors)}"] if self.token_vectors else []
        parts += [f"chunks of {len(self.chunks)}"] if self.chunks else []
        parts += [f"model={self.model!r}, {self.input_tokens} tokens"]
        return f"Embeddings({', '.join(parts)})"

    def to_float32(self) -> NDArray[np.float32]:
        """Return the dense vectors as float32 [texts, dimensions].

        Raises:
            ValueError: The encoding is "ubinary", which keeps only signs:
                `numpy.unpackbits(vectors, axis=1, count=dimensions)` returns those.
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
        if copy is None:  # numpy 1 knows no third value
            return np.asarray(self.vectors, dtype=dtype)
        return np.array(self.vectors, dtype=dtype, copy=copy)


@dataclass(frozen=True, slots=True, eq=False)
class PartialEmbeddings:
    """The embeddings of a batch of texts of which some may have failed.

    `len()` counts all texts. An index returns the vector of one text, or raises its error, so
    that a text that failed has no vector to be mistaken for its own.

    Attributes:
        embedded: The embeddings of the texts that did not fail.
        indices: int64 [len(embedded)]; the position of each among the texts of the call,
            ascending.
        errors: The error of every other text, by position.
    """

    embedded: Embeddings
    indices: NDArray[np.int64]
    errors: Mapping[int, EmbedGrpcError]

    def __repr__(self) -> str:
        return f"PartialEmbeddings({len(self.errors)} of {len(self)} failed, {self.embedded!r})"

    def require_all(self) -> Embeddings:
        """Return the embeddings of all texts.

        Raises:
            EmbedGrpcError: A text failed: the first error.
        """
        for error in self.errors.values():
            raise error.with_traceback(None)
        return self.embedded

    def __len__(self) -> int:
        return len(self.indices) + len(self.errors)

    def __getitem__(self, index: int) -> NDArray[Any]:
        position = range(len(self))[index]
        if position in self.errors:
            raise self.errors[position].with_traceback(None)
        return self.embedded[int(np.searchsorted(self.indices, position))]

    def __array__(
        self,
        dtype: Any = None,
        copy: bool | None = None,  # noqa: FBT001 -- numpy's protocol
    ) -> NDArray[Any]:
        return self.require_all().__array__(dtype, copy)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and its score.

    Attributes:
        index: The position among the documents of the call, from 0.
        score: The relevance; higher is better.
        document: The document if the call set `return_documents`, else "".
        truncated: Whether the document was cut to fit.
    """

    index: int
    score: float
    document: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents with their scores, best first: a sequence of `RankedDocument`.

    Attributes:
        results: The documents. Equal scores keep the order of the call.
        model: The id of the model that ran.
        revision: Its revision.
        fingerprint: The id of the source of the scores. Never compare scores of different ones.
        input_tokens: The tokens of the whole call.
        query_tokens: Those of the query; a cross-encoder reads it with every document.
        document_tokens: Those of the documents.
        errors: With `allow_partial`: the error of each document without a score, by index.
    """

    results: Sequence[RankedDocument]
    model: str
    revision: str
    fingerprint: str
    input_tokens: int
    query_tokens: int = 0
    document_tokens: int = 0
    errors: Mapping[int, EmbedGrpcError] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = ", ".join(f"{one.index}: {one.score:.4g}" for one in self.results[:_SHOWN_RANKED])
        more = ", ..." if len(self.results) > _SHOWN_RANKED else ""
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"Ranking({len(self)} documents: {best}{more}{failed}, model={self.model!r})"

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.results)

    def __getitem__(self, index: int) -> RankedDocument:
        return self.results[index]


@dataclass(frozen=True, slots=True)
class StreamReady:
    """The model and the limits of a stream.

    Attributes:
        model: The id of the model that runs.
        revision: Its revision.
        fingerprint: The id of the embedding space. Never mix vectors of different ones.
        dimensions: The length of dense vectors.
        max_in_flight_inputs: The limit of inputs that have no result yet.
        max_batch_inputs: The limit of inputs in one message.
        limits: The limits of the server.
    """

    model: str
    revision: str
    fingerprint: str
    dimensions: int
    max_in_flight_inputs: int
    max_batch_inputs: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class RerankStreamReady:
    """The model and the limits of a stream of rankings.

    Attributes:
        model: The id of the model that runs.
        revision: Its revision.
        fingerprint: The id of the source of the scores. Never compare scores of different ones.
        max_in_flight_inputs: The limit of documents whose query has no result yet.
        max_part_inputs: The limit of documents in one message.
        max_query_inputs: The limit of documents of one query.
        limits: The limits of the server.
    """

    model: str
    revision: str
    fingerprint: str
    max_in_flight_inputs: int
    max_part_inputs: int
    max_query_inputs: int
    limits: Limits


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The embedding of one input of a stream, or its error.

    Attributes:
        id: The id that the caller gave, or the position of the text as a decimal str.
        vector: Like a row of `Embeddings.vectors`; None after an error, or if the call asked
            for no dense vectors.
        scale: `vector * scale` restores "int8" numbers; 1.0 in every other encoding.
        sparse: None if the call did not ask for it.
        multi_vector: None if the call did not ask for it.
        token_count: The tokens of the text.
        truncated: Whether the text was cut to fit.
        token_vectors: None if the call did not ask for them.
        chunks: None if the call did not ask for them.
        error: The reason why there is no embedding, for you to raise; None if there is one.
    """

    id: Any
    vector: Vectors | None = None
    scale: float = 1.0
    sparse: SparseVector | None = None
    multi_vector: MultiVector | None = None
    token_count: int = 0
    truncated: bool = False
    token_vectors: TokenVectors | None = None
    chunks: ChunkVectors | None = None
    error: EmbedGrpcError | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"StreamResult(id={self.id!r}, error={self.error!r})"
        parts = [f"id={self.id!r}"]
        parts += [show_shape(self.vector)] if self.vector is not None else []
        others = (self.sparse, self.multi_vector, self.token_vectors, self.chunks)
        parts += [repr(one) for one in others if one is not None]
        return f"StreamResult({', '.join(parts)}, {self.token_count} tokens)"


@dataclass(frozen=True, slots=True, eq=False)
class RerankResult:
    """The ranking of one query of a stream, or its error.

    Attributes:
        id: The id that the caller gave, or the position of the query as a decimal str.
        ranking: The documents, best first; None after an error.
        error: The reason why there is no ranking, for you to raise; None if there is one.
    """

    id: Any
    ranking: Ranking | None = None
    error: EmbedGrpcError | None = None
