"""What is asked of an embedding model, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import Representation, Truncation


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """How texts are embedded.

    Attributes:
        prompt: What is put in front of each text.
        dimensions: Length of the vectors, at most the model's.
        normalize: Whether they get unit length.
        truncation: What to do with a text that is too long.
        max_tokens: The most tokens of a text, at most the model's.
        representations: What to return; the model has them all.
        max_sparse_terms: Only this many of the heaviest sparse terms; 0 for all.
    """

    prompt: str
    dimensions: int
    normalize: bool
    truncation: Truncation
    max_tokens: int
    representations: tuple[Representation, ...]
    max_sparse_terms: int = 0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What the model says of some texts.

    Attributes:
        vectors: float32 [texts, dimensions]; None where no dense vectors were asked for.
        sparse: A sparse vector a text; None likewise.
        multi_vectors: float32 [tokens, dimensions] for each text; None likewise.
        token_counts: For each text how many tokens the model read.
        truncated: For each text whether it was cut to fit.
    """

    vectors: FloatArray | None
    sparse: Sequence[SparseVector] | None
    multi_vectors: Sequence[FloatArray] | None
    token_counts: Sequence[int]
    truncated: Sequence[bool]
