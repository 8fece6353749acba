"""The public names of `embedgrpc.client`."""

from embedgrpc.client.async_client import AsyncClient
from embedgrpc.client.async_stream import AsyncClassifyStream, AsyncEmbedStream, AsyncRerankStream
from embedgrpc.client.classifications import (
    Classification,
    Classifications,
    ClassifyResult,
    ClassifyStreamReady,
    LabelScore,
)
from embedgrpc.client.client import Client
from embedgrpc.client.databases import to_milvus, to_pgvector, to_qdrant
from embedgrpc.client.errors import (
    BackendFailedError,
    BackendUnavailableError,
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    EmptyInputError,
    EncodeError,
    FieldViolation,
    InputTooLongError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelChangedError,
    ModelNotFoundError,
    NonFiniteOutputError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    ShuttingDownError,
    UnauthenticatedError,
    UnsupportedError,
)
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import (
    ClassifyOptions,
    EmbedOptions,
    RerankOptions,
    TokenizeOptions,
)
from embedgrpc.client.result_types import (
    Embeddings,
    PartialEmbeddings,
    RankedDocument,
    Ranking,
    RerankResult,
    RerankStreamReady,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.server_description import Limits, Server
from embedgrpc.client.server_status import ModelStatus, ReloadStatus, ServerStatus
from embedgrpc.client.stream import ClassifyStream, EmbedStream, RerankStream
from embedgrpc.client.text_parts import ChunkVectors, TokenVectors
from embedgrpc.client.tokens import TokenCounts, TokenizedText
from embedgrpc.client.unary_calls import HealthStatus
from embedgrpc.client.vectors import MultiVector, SparseVector

__all__ = [
    "AsyncClassifyStream",
    "AsyncClient",
    "AsyncEmbedStream",
    "AsyncRerankStream",
    "BackendFailedError",
    "BackendUnavailableError",
    "BadResponseError",
    "ChunkVectors",
    "Classification",
    "Classifications",
    "ClassifyOptions",
    "ClassifyResult",
    "ClassifyStream",
    "ClassifyStreamReady",
    "Client",
    "ConnectionFailedError",
    "DeadlineExpiredError",
    "EmbedGrpcError",
    "EmbedOptions",
    "EmbedStream",
    "Embeddings",
    "EmptyInputError",
    "EncodeError",
    "FieldViolation",
    "HealthStatus",
    "InputTooLongError",
    "InternalError",
    "InvalidRequestError",
    "LabelScore",
    "Limits",
    "MessageTooLargeError",
    "Model",
    "ModelChangedError",
    "ModelNotFoundError",
    "ModelStatus",
    "MultiVector",
    "NonFiniteOutputError",
    "OverloadedError",
    "PartialEmbeddings",
    "PermissionDeniedError",
    "RankedDocument",
    "Ranking",
    "RateLimitedError",
    "ReloadStatus",
    "RerankOptions",
    "RerankResult",
    "RerankStream",
    "RerankStreamReady",
    "Server",
    "ServerStatus",
    "ShuttingDownError",
    "SparseVector",
    "StreamReady",
    "StreamResult",
    "TokenCounts",
    "TokenVectors",
    "TokenizeOptions",
    "TokenizedText",
    "UnauthenticatedError",
    "UnsupportedError",
    "to_milvus",
    "to_pgvector",
    "to_qdrant",
]
