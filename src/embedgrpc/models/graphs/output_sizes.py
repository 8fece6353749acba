"""How many values the outputs of a model's graph have."""

from collections.abc import Mapping

from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import (
    LOGITS,
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)


def output_sizes(properties: ModelProperties) -> Mapping[str, tuple[int | None, ...]]:
    """The lengths of each output's axes after that of the batch.

    Args:
        properties: What the model is.

    Returns:
        By name; None for an axis that is as long as the sequences are. Which of the outputs a
        graph has, the graph says.
    """
    return {
        SENTENCE_EMBEDDING: (properties.dimensions,),
        POOLED_EMBEDDING: (properties.dimensions,),
        LOGITS: (1,),
        TOKEN_WEIGHTS: (None,),
        VOCABULARY_WEIGHTS: (properties.sparse_dimensions,),
        TOKEN_EMBEDDINGS: (None, properties.multi_vector_dimensions),
    }
