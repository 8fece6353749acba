"""What the dialects answer, as types: the description of the API shows them.

The handlers write vectors as bytes of JSON; the tests hold them to these types.
"""

from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

Vectors: TypeAlias = list[list[float]]


class Usage(msgspec.Struct):
    """The tokens that a request took."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct):
    """A vector: numbers, or their bytes in base64. `scale` restores int8."""

    object: str
    index: int
    embedding: list[float] | str
    scale: float | UnsetType = UNSET


class EmbeddingsAnswer(msgspec.Struct):
    """Vectors in the order of the inputs. `fingerprint` tells models and their versions apart."""

    object: str
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    fingerprint: str


class ModelItem(msgspec.Struct):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelsAnswer(msgspec.Struct):
    """The models that are served."""

    object: str
    data: list[ModelItem]


class ApiVersion(msgspec.Struct):
    """The version of Cohere's API."""

    version: str


class BilledUnits(msgspec.Struct):
    """What Cohere would bill."""

    input_tokens: int | UnsetType = UNSET
    search_units: int | UnsetType = UNSET


class Meta(msgspec.Struct):
    """Cohere's note on a request."""

    api_version: ApiVersion
    billed_units: BilledUnits


# `float` and `int8` name formats here.
_Numbers: TypeAlias = list[list[float]]
_WholeNumbers: TypeAlias = list[list[int]]
_Embeddings = msgspec.defstruct(
    "EmbeddingsByType",
    [
        ("float", _Numbers | UnsetType, UNSET),
        ("base64", list[str] | UnsetType, UNSET),
        ("int8", _WholeNumbers | UnsetType, UNSET),
        ("ubinary", _WholeNumbers | UnsetType, UNSET),
        ("binary", _WholeNumbers | UnsetType, UNSET),
    ],
    namespace={"__doc__": "The vectors in each number format that was asked for."},
)


class EmbeddingsByTypeAnswer(msgspec.Struct):
    """Vectors in several number formats. `int8_scales` restores the numbers of int8."""

    id: str
    response_type: str
    embeddings: _Embeddings  # type: ignore[valid-type] # made above
    meta: Meta
    model: str
    fingerprint: str
    int8_scales: list[float] | UnsetType = UNSET


class RankedDocument(msgspec.Struct):
    """The text of a document."""

    text: str


class RankedItem(msgspec.Struct):
    """A document's place in the request, and its score under both names."""

    index: int
    relevance_score: float
    score: float
    document: RankedDocument | UnsetType = UNSET
    text: str | UnsetType = UNSET


class RerankAnswer(msgspec.Struct):
    """Documents, the best first, with the keys that Cohere, Jina and vLLM have."""

    id: str
    model: str
    results: list[RankedItem]
    usage: Usage
    meta: Meta
    fingerprint: str


class RankedText(msgspec.Struct):
    """A text's place in the request, and its score."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class Prediction(msgspec.Struct):
    """A label of a classifier, and its score."""

    score: float
    label: str


class SimpleToken(msgspec.Struct):
    """A token. `start` and `stop` are places in the UTF-8 of the text with its prompt."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class ScoreItem(msgspec.Struct):
    """A pair's place in the request, and its score."""

    index: int
    object: str
    score: float


class ScoreAnswer(msgspec.Struct):
    """Scores in the order of the pairs."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreItem]
    usage: Usage
    fingerprint: str


class SparseValue(msgspec.Struct):
    """A token of the vocabulary, and its weight."""

    index: int
    value: float


class ModelInfo(msgspec.Struct):
    """The default model and the limits, as text-embeddings-inference names them."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class QueryEmbedding(msgspec.Struct):
    """The vector of a query."""

    embedding: list[float]


class SentencesAnswer(msgspec.Struct):
    """Vectors in the order of the sentences."""

    embeddings: Vectors


class ScoresAnswer(msgspec.Struct):
    """Scores in the order of the pairs."""

    scores: list[float]


class TotalUsage(msgspec.Struct):
    """The tokens that a request took."""

    total_tokens: int


class InputAnswer(msgspec.Struct):
    """Vectors in the order of the inputs."""

    embeddings: Vectors
    model: str
    usage: TotalUsage


class ModelNames(msgspec.Struct):
    """The models that are ready, by what they do."""

    embedding_models: list[str]
    reranking_models: list[str]


class StatusAnswer(msgspec.Struct):
    """Whether the server can serve calls."""

    status: str
    service: str
