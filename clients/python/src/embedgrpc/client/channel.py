"""The channel of a client and its stubs."""

import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.client.attempts import Attempts, RetryBudget
from embedgrpc.client.concurrency import ConcurrencyLimit
from embedgrpc.client.defaults import (
    DEFAULT_CONCURRENT_CALLS,
    DEFAULT_REQUEST_BYTES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    RESPONSE_BYTES_MAX,
)
from embedgrpc.client.errors import EmbedGrpcError, InputTooLongError, MessageTooLargeError
from embedgrpc.client.proxies import proxy_options
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.status_errors import error_of_call
from embedgrpc.v1 import (
    classify_service_pb2_grpc,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)

Metadata = Sequence[tuple[str, str | bytes]]

_HEALTH_SERVICE = "embedgrpc.v1.EmbeddingService"
# gRPC's retry buffer holds this much beside the message.
_RETRY_OVERHEAD_BYTES = 64 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    # `RequestLimit` measures requests before they are sent.
    ("grpc.max_send_message_length", -1),
    # Otherwise clients of one target share a connection, and its limit of concurrent calls.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
)


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of one channel."""

    embedding: Any
    rerank: Any
    classify: Any
    model: Any
    tokenizer: Any
    health: Any

    @classmethod
    def of(cls, channel: Any) -> Self:
        """Make the stubs of a `grpc.Channel` or `grpc.aio.Channel`."""
        return cls(*(make(channel) for make in _STUB_CLASSES))


_STUB_CLASSES: Final[tuple[Callable[[Any], Any], ...]] = (
    embedding_service_pb2_grpc.EmbeddingServiceStub,
    rerank_service_pb2_grpc.RerankServiceStub,
    classify_service_pb2_grpc.ClassifyServiceStub,
    model_service_pb2_grpc.ModelServiceStub,
    tokenizer_service_pb2_grpc.TokenizerServiceStub,
    health_pb2_grpc.HealthStub,
)


class ChannelOwner:
    """The settings of a client, and the channel that it opens at its first call.

    A pickle holds the settings only.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        health_check: bool = False,
        max_request_bytes: int = DEFAULT_REQUEST_BYTES,
        max_concurrent_calls: int = DEFAULT_CONCURRENT_CALLS,
    ) -> None:
        """Check the settings; connect later.

        Args:
            target: HOST:PORT or unix:PATH.
            timeout_s: The deadline of a call, and the longest wait for the next response of a
                stream, in seconds. A call may set its own.
            credentials: Credentials for TLS; None connects in plain text. A client with
                credentials cannot be pickled.
            metadata: Metadata to send with every call.
            health_check: Whether to spread calls over all addresses of the target that report
                SERVING. Otherwise the first address that connects gets all calls.
            max_request_bytes: The size limit of a request; set it to the server's
                `max_request_bytes`. A longer text fails before it is sent.
            max_concurrent_calls: The limit of calls in flight, streams included. Further calls
                wait for their turn, first come, first served. A server or proxy may have a lower
                limit: then calls take longer, but none is lost.

        Raises:
            ValueError: The target is empty, the timeout is not positive and finite, or a limit
                is out of range.
        """
        if not target:
            raise ValueError("target is empty; give HOST:PORT or unix:PATH")
        self._target = target
        self._timeout_s = valid_timeout(timeout_s)
        self._credentials = credentials
        self._metadata = tuple(metadata)
        self._health_check = health_check
        self._max_request_bytes = max_request_bytes
        self._request_limit = RequestLimit(max_request_bytes)
        self._concurrency = ConcurrencyLimit(max_concurrent_calls)
        self._retry_budget = RetryBudget()
        self._opening = threading.Lock()
        self._channel: Any = None
        self._stubs: Stubs | None = None
        self._closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(
            type(self),
            self._target,
            timeout_s=self._timeout_s,
            credentials=self._credentials,
            metadata=self._metadata,
            health_check=self._health_check,
            max_request_bytes=self._max_request_bytes,
            max_concurrent_calls=self._concurrency.max_calls,
        )
        return make, ()

    def _open(self, api: Any) -> Stubs:
        """Return the stubs; open a channel of `api`, `grpc` or `grpc.aio`, at the first call."""
        with self._opening:
            self._check_open()
            if self._stubs is None:
                options = (
                    *_OPTIONS,
                    # gRPC does not retry a request that is larger than this.
                    (
                        "grpc.per_rpc_retry_buffer_size",
                        self._max_request_bytes + _RETRY_OVERHEAD_BYTES,
                    ),
                    *proxy_options(self._target),
                    ("grpc.service_config", service_config(health_check=self._health_check)),
                )
                self._channel = (
                    api.insecure_channel(self._target, options)
                    if self._credentials is None
                    else api.secure_channel(self._target, self._credentials, options)
                )
                self._stubs = Stubs.of(self._channel)
            return self._stubs

    def _release(self) -> Any:
        """Mark the client as closed; return its channel, None if it has none."""
        with self._opening:
            channel, self._channel, self._stubs, self._closed = self._channel, None, None, True
            return channel

    def _check_open(self) -> None:
        """Raise RuntimeError if the client is closed."""
        if self._closed:
            raise RuntimeError("the client is closed")

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else valid_timeout(timeout_s)

    def _new_attempts(self, timeout_s: float) -> Attempts:
        return Attempts(self._concurrency, self._retry_budget, timeout_s)

    def _error_of(
        self, failure: Any, request: Any = None, texts: Mapping[str, Sequence[str]] | None = None
    ) -> EmbedGrpcError:
        """Return the error of a call that failed; learn the server's limit from it.

        Args:
            failure: The `grpc.RpcError` that the call raised.
            request: The message of a unary call.
            texts: Its texts, as `RequestLimit.check` takes them, to name those that are too long.
        """
        error = error_of_call(failure)
        self._request_limit.learn(error)
        if texts and isinstance(error, MessageTooLargeError):
            try:
                self._request_limit.check(request, texts)
            except InputTooLongError as named:
                return named.with_traceback(None)
            except MessageTooLargeError:
                pass
        return error


def service_config(*, health_check: bool) -> str:
    """Return gRPC's service config: `service_config.json` of this package.

    Args:
        health_check: Whether to use every address that reports SERVING.
    """
    config = json.loads(resources.files(__package__).joinpath("service_config.json").read_text())
    if health_check:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": _HEALTH_SERVICE}
    return json.dumps(config)


def valid_timeout(timeout_s: float) -> float:
    """Return a timeout in seconds.

    Raises:
        ValueError: It is not a positive, finite number.
    """
    if not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s is {timeout_s}; it must be a positive, finite number")
    return timeout_s
