"""What an embedding model is asked for, and its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.tasks.chunking import Chunking, ChunkVectors
from embedgrpc.engine.tasks.token_places import TokenVectors
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.kinds import Representation, TextRole, Truncation


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """How to embed texts.

    Attributes:
        prompt: Prepended to each text.
        dimensions: Numbers per vector, at most the model's.
        normalize: Whether to scale vectors to unit length.
        truncation: The treatment of texts that are too long.
        max_tokens: Maximum tokens of a text, at most the model's.
        representations: The representations to return; the model must have them.
        max_sparse_terms: Keep only this many of the heaviest sparse terms; 0 for all.
        task: The task that the graph computes, if the model has several.
        role: What the texts are to a model of late interaction; None for other models.
        min_tokens: The tokens that each text has at least, because the model fills it up.
        route: The name of the route that computes them; empty for a model with one.
        token_dimensions: Values per token vector, if the model is to return those that it pools;
            0 for none.
        chunking: How to cut texts into chunks with a vector each; None for none.
        returns_tokens: Whether to return the token vectors.
    """

    prompt: str
    dimensions: int
    normalize: bool
    truncation: Truncation
    max_tokens: int
    representations: tuple[Representation, ...]
    max_sparse_terms: int = 0
    task: int = 0
    role: TextRole | None = None
    min_tokens: int = 0
    route: str = ""
    token_dimensions: int = 0
    chunking: Chunking | None = None
    returns_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of some texts.

    Attributes:
        vectors: float32 [texts, dimensions]; None if not requested.
        sparse: A sparse vector per text; None if not requested.
        multi_vectors: float32 [tokens, dimensions] per text; None if not requested.
        token_counts: Tokens that the model read, per text.
        truncated: Whether the text was cut to fit, per text.
        token_vectors: The vectors that are pooled, of all tokens, per text; None if not requested.
        chunks: The vectors of the chunks, per text; None if not requested.
    """

    vectors: FloatArray | None
    sparse: Sequence[SparseVector] | None
    multi_vectors: Sequence[FloatArray] | None
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    token_vectors: Sequence[TokenVectors] | None = None
    chunks: Sequence[ChunkVectors] | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of the texts of one call.

    Attributes:
        embeddings: Those of the texts that did not fail; None where all failed.
        indices: Which texts they belong to, in order.
        failures: Why the other texts failed, by index.
    """

    embeddings: Embeddings | None
    indices: Sequence[int]
    failures: Mapping[int, EngineError]
