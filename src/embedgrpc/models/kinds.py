"""The words for what a model is and does, spelled as sentence-transformers spells them."""

from enum import StrEnum
from typing import Literal

PaddingSide = Literal["left", "right"]


class Kind(StrEnum):
    """What a model answers with."""

    EMBEDDING = "embedding"
    CROSS_ENCODER = "cross_encoder"


class Representation(StrEnum):
    """What form a text's vectors have."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI_VECTOR = "multi_vector"


class Pooling(StrEnum):
    """How the vectors of the tokens become one vector.

    Source: sentence-transformers `Pooling`, the values of `pooling_mode`.
    """

    CLS = "cls"
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - a way of pooling, not a password


class Similarity(StrEnum):
    """How two vectors of a model are meant to be compared."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"


class Activation(StrEnum):
    """What turns a cross-encoder's logit into its score."""

    SIGMOID = "sigmoid"
    IDENTITY = "identity"


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
    """What a graph's weights are and what is computed in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
