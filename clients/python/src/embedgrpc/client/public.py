"""The public names of `embedgrpc.client`."""

from embedgrpc.client.async_client import AsyncClient
from embedgrpc.client.async_embed_stream import AsyncEmbedStream
from embedgrpc.client.client import Client
from embedgrpc.client.embed_stream import EmbedStream
from embedgrpc.client.errors import (
    BackendFailedError,
    BackendUnavailableError,
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    EmptyInputError,
    InputTooLongError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
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
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.result_types import (
    Embeddings,
    RankedDocument,
    Ranking,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.unary_calls import HealthStatus
from embedgrpc.client.vectors import MultiVector, SparseVector

__all__ = [
    "AsyncClient",
    "AsyncEmbedStream",
    "BackendFailedError",
    "BackendUnavailableError",
    "BadResponseError",
    "Client",
    "ConnectionFailedError",
    "DeadlineExpiredError",
    "EmbedGrpcError",
    "EmbedOptions",
    "EmbedStream",
    "Embeddings",
    "EmptyInputError",
    "HealthStatus",
    "InputTooLongError",
    "InternalError",
    "InvalidRequestError",
    "MessageTooLargeError",
    "Model",
    "ModelNotFoundError",
    "MultiVector",
    "NonFiniteOutputError",
    "OverloadedError",
    "PermissionDeniedError",
    "RankedDocument",
    "Ranking",
    "RateLimitedError",
    "RerankOptions",
    "ShuttingDownError",
    "SparseVector",
    "StreamReady",
    "StreamResult",
    "UnauthenticatedError",
    "UnsupportedError",
]
