"""The shapes of the outputs of a model's graph."""

from collections.abc import Mapping

from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import (
    LOGITS,
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_VECTORS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)


def output_sizes(properties: ModelProperties) -> Mapping[str, tuple[int | None, ...]]:
    """Return the length of each axis after the batch, for every output that a graph may have.

    None stands for an axis as long as the sequences.
    """
    return {
        SENTENCE_EMBEDDING: (properties.dimensions,),
        POOLED_EMBEDDING: (properties.dimensions,),
        LOGITS: (max(1, len(properties.labels)),),
        TOKEN_WEIGHTS: (None,),
        VOCABULARY_WEIGHTS: (properties.sparse_dimensions,),
        TOKEN_EMBEDDINGS: (None, properties.multi_vector_dimensions),
        TOKEN_VECTORS: (None, properties.token_dimensions),
    }
