"""The values of a model's properties, spelled as in sentence-transformers."""

from enum import StrEnum
from typing import Literal

PaddingSide = Literal["left", "right"]


class Kind(StrEnum):
    """What a model returns: vectors, one score, or a score for each of several labels."""

    EMBEDDING = "embedding"
    CROSS_ENCODER = "cross_encoder"
    CLASSIFIER = "classifier"


class Representation(StrEnum):
    """The form of a text's vectors."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI_VECTOR = "multi_vector"


class TextRole(StrEnum):
    """What a text is to the model: some compute queries otherwise than documents."""

    QUERY = "query"
    DOCUMENT = "document"


class Pooling(StrEnum):
    """How token vectors become one vector.

    Source: `pooling_mode` of sentence-transformers' `Pooling`.
    """

    CLS = "cls"
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - not a password


class Similarity(StrEnum):
    """How to compare two vectors of a model."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"


class Activation(StrEnum):
    """The function from the logits of a cross-encoder or classifier to its scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    IDENTITY = "identity"


class PairTemplate(StrEnum):
    """How the authors of a reranker write a query and a document for it."""

    QWEN3_RERANKER = "qwen3-reranker"
    MXBAI_RERANK_V2 = "mxbai-rerank-v2"
    BGE_RERANKER_V2_GEMMA = "bge-reranker-v2-gemma"


class Truncation(StrEnum):
    """What happens to a sequence that is too long."""

    NONE = "none"
    END = "end"
    START = "start"


class RerankMethod(StrEnum):
    """How a model scores a document against a query."""

    CROSS_ENCODER = "cross_encoder"
    SIMILARITY = "similarity"
    LATE_INTERACTION = "late_interaction"
    HYBRID = "hybrid"


class WeightType(StrEnum):
    """The type of a graph's weights and of its computations."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
