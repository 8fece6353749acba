"""From the settings of a client to a channel and its stubs."""

import functools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from embedgrpc.client.concurrency import (
    DEFAULT_CONCURRENT_CALLS,
    ConcurrencyLimit,
    Slot,
    is_refused,
)
from embedgrpc.client.errors import DeadlineExpiredError, EmbedGrpcError
from embedgrpc.client.proxies import proxy_options
from embedgrpc.client.request_limit import DEFAULT_REQUEST_BYTES, RequestLimit
from embedgrpc.client.status_errors import error_of_call
from embedgrpc.v1 import embedding_service_pb2_grpc, model_service_pb2_grpc, rerank_service_pb2_grpc

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 60.0
MESSAGE_BYTES_MAX: Final = 16 * 2**20
Metadata = Sequence[tuple[str, str | bytes]]

_RESPONSE_BYTES_KEY = "embedgrpc-max-response-bytes"
# Between two attempts at a call that was refused: doubles up to the second.
_REFUSED_DELAY_S = 0.02
_REFUSED_DELAY_S_MAX = 1.0
_HEALTH_SERVICE = "embedgrpc.v1.EmbeddingService"
# What a request takes in gRPC's buffer for retries beside its message.
_RETRY_OVERHEAD_BYTES = 64 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # Requests are measured before they are sent.
    ("grpc.max_send_message_length", -1),
    # Else clients of one target share a connection, and the calls that it may have at once.
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
    model: Any
    health: Any

    @classmethod
    def of(cls, channel: Any) -> Self:
        """Makes the stubs of a channel of either kind."""
        return cls(*(make(channel) for make in _STUB_CLASSES))


_STUB_CLASSES: tuple[Callable[[Any], Any], ...] = (
    embedding_service_pb2_grpc.EmbeddingServiceStub,
    rerank_service_pb2_grpc.RerankServiceStub,
    model_service_pb2_grpc.ModelServiceStub,
    health_pb2_grpc.HealthStub,
)


class ChannelOwner:
    """What the two clients share: settings now, a channel at the first call.

    Until then one may be pickled or forked; a pickle holds the settings only. `Client` tells
    what they are.
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
        if not target:
            raise ValueError("target is empty; give HOST:PORT or unix:PATH")
        self._target = target
        self._timeout_s = valid_timeout(timeout_s)
        self._credentials = credentials
        self._metadata = tuple(metadata)
        # The server refuses what would be too large for us before it does the work.
        self._call_metadata = (*self._metadata, (_RESPONSE_BYTES_KEY, str(MESSAGE_BYTES_MAX)))
        self._health_check = health_check
        self._max_request_bytes = max_request_bytes
        self._request_limit = RequestLimit(max_request_bytes)
        self._concurrency = ConcurrencyLimit(max_concurrent_calls)
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
        """Gives the stubs; connects first, with `grpc` or `grpc.aio`, if need be."""
        with self._opening:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._stubs is None:
                options = (
                    *_OPTIONS,
                    # gRPC silently does not retry a request that is larger than this.
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
        """Takes the channel away for good, to be closed; None if there is none."""
        with self._opening:
            channel, self._channel, self._stubs, self._closed = self._channel, None, None, True
            return channel

    def _check_open(self) -> None:
        """Raise RuntimeError if the client is closed, as it may be after a wait."""
        with self._opening:
            if self._closed:
                raise RuntimeError("the client is closed")

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else valid_timeout(timeout_s)

    def attempts(self, timeout_s: float) -> "Attempts":
        """Gives the time to make one call in."""
        return Attempts(self._concurrency, timeout_s)

    def error_of(self, failure: Any) -> EmbedGrpcError:
        """Reads why a call failed, and what that tells of the server."""
        error = error_of_call(failure)
        self._request_limit.learn(error)
        return error


class Attempts:
    """The time that one call has, over all attempts to make it.

    A call that a server refused, because there were too many on the connection, was not looked
    at, and is made again as long as there is time.

    Args:
        concurrency: The calls of the client.
        timeout_s: Time for all of it, in seconds.
    """

    def __init__(self, concurrency: ConcurrencyLimit, timeout_s: float) -> None:
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._delay_s = _REFUSED_DELAY_S

    def left_s(self) -> float:
        """Returns the time that is left, in seconds.

        Raises:
            DeadlineExpiredError: There is none.
        """
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise DeadlineExpiredError(
                f"the call waited {self._timeout_s:g} s for others of this client to end: at most"
                f" {self._concurrency.limit} are in flight at once (max_concurrent_calls is"
                f" {self._concurrency.max_calls})",
                reason="",
            )
        return left_s

    def delay_s(self, failure: Any, slot: Slot) -> float | None:
        """Judges a failure.

        Args:
            failure: The `grpc.RpcError` that the call raised.
            slot: The call's slot.

        Returns:
            How long to wait before the next attempt, in seconds; None when it would not help.
        """
        if not is_refused(failure):
            return None
        self._concurrency.lower(slot)
        return self.next_delay_s()

    def next_delay_s(self) -> float | None:
        """Returns how long to wait before another attempt, in seconds; None without time for it."""
        delay_s = self._delay_s * random.uniform(0.5, 1)  # noqa: S311 -- no secret
        self._delay_s = min(self._delay_s * 2, _REFUSED_DELAY_S_MAX)
        return delay_s if time.monotonic() + delay_s < self._until else None


def service_config(*, health_check: bool) -> str:
    """Reads how calls are retried and balanced, as gRPC takes it.

    Args:
        health_check: Whether to use every address that reports SERVING.

    Returns:
        JSON: `service_config.json` of this package, with load balancing if wanted.
    """
    config = json.loads(resources.files(__package__).joinpath("service_config.json").read_text())
    if health_check:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": _HEALTH_SERVICE}
    return json.dumps(config)


def valid_timeout(timeout_s: float) -> float:
    """Checks a timeout.

    Args:
        timeout_s: The timeout in seconds.

    Returns:
        The timeout.

    Raises:
        ValueError: It is not a positive, finite number.
    """
    if not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s is {timeout_s}; it must be a positive, finite number")
    return timeout_s
