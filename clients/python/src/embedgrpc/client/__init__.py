"""The Python client of embedgrpc: text to vectors, documents by relevance."""

from embedgrpc.client.aio import AsyncClient
from embedgrpc.client.aio_stream import AsyncEmbedStream
from embedgrpc.client.calls import HealthStatus
from embedgrpc.client.client import Client
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
from embedgrpc.client.models import Model
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.results import Embeddings, RankedDocument, Ranking, StreamReady, StreamResult
from embedgrpc.client.sync_stream import EmbedStream
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
