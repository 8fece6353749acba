"""The channel of a client and its stubs."""

import functools
import inspect
import json
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from typing_extensions import Never, Self

from embedgrpc.client.attempts import Attempts, RetryBudget
from embedgrpc.client.call_credentials import CallCredentials, Token
from embedgrpc.client.concurrency import ConcurrencyLimit, Slot
from embedgrpc.client.defaults import (
    DEFAULT_CONCURRENT_CALLS,
    DEFAULT_REQUEST_BYTES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    RESPONSE_BYTES_MAX,
)
from embedgrpc.client.errors import EmbedGrpcError, InputTooLongError, MessageTooLargeError
from embedgrpc.client.proxies import is_here, proxy_options
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.status_errors import error_of_call
from embedgrpc.client.suggestions import unknown_argument_error
from embedgrpc.client.targets import valid_target
from embedgrpc.client.tls_files import TlsFiles
from embedgrpc.v1 import (
    admin_service_pb2_grpc,
    classify_service_pb2_grpc,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
    rerank_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)

_logger = logging.getLogger(__name__)

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
    # A server that has restarted is found again soon: gRPC itself waits for up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
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
    admin: Any
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
    admin_service_pb2_grpc.AdminServiceStub,
    health_pb2_grpc.HealthStub,
)


@dataclass(slots=True, eq=False)
class _Opened:
    """A channel, and the slots of the calls that were made on it.

    A call in flight keeps its slot alive.
    """

    channel: Any
    stubs: Stubs
    slots: "weakref.WeakSet[Slot]" = field(default_factory=weakref.WeakSet)

    @property
    def idle(self) -> bool:
        return all(slot.released for slot in self.slots)


@dataclass(frozen=True, slots=True)
class StreamCalls:
    """What a stream needs of its client.

    Attributes:
        start: Starts a call; to be awaited if the client is asynchronous.
        new_attempts: Returns the attempts at a call with a timeout in seconds.
        error_of: Returns the error of a call that failed.
        is_closed: Returns whether the client is closed.
    """

    start: Callable[..., Any]
    new_attempts: Callable[[float], Attempts]
    error_of: Callable[[Any], EmbedGrpcError]
    is_closed: Callable[[], bool]


class ChannelOwner(ABC):
    """The settings of a client, and the channel that it opens at its first call.

    A pickle holds the settings only.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata | Mapping[str, str | bytes] = (),
        health_check: bool = False,
        max_request_bytes: int = DEFAULT_REQUEST_BYTES,
        max_concurrent_calls: int = DEFAULT_CONCURRENT_CALLS,
        tls: bool = False,
        ca_file: str = "",
        certificate_file: str = "",
        key_file: str = "",
        server_name: str = "",
        api_key: str = "",
        token: Token = "",
        allow_plaintext_credentials: bool = False,
        **unknown: Never,
    ) -> None:
        """Check the settings; connect later.

        Args:
            target: HOST:PORT or unix:PATH.
            timeout_s: The deadline of a call, and the longest wait for the next response of a
                stream, in seconds. A call may set its own.
            credentials: Credentials for TLS, in place of the files below. A client with
                credentials cannot be pickled.
            metadata: Metadata to send with every call: pairs, or a dict.
            health_check: Whether to spread calls over all addresses of the target that report
                SERVING. Otherwise the first address that connects gets all calls.
            max_request_bytes: The size limit of a request; set it to the server's
                `max_request_bytes`. A longer text fails before it is sent.
            max_concurrent_calls: The limit of calls in flight, streams included. Further calls
                wait for their turn, first come, first served. A server or proxy may have a lower
                limit: then calls take longer, but none is lost.
            tls: Whether to connect with TLS; a file implies it. Otherwise, the client connects in
                plain text.
            ca_file: PEM file of the authorities to trust; "" for those that come with gRPC. A
                server's own certificate will do, too.
            certificate_file: PEM file of the client's certificate and its chain. The files are
                read again when they have changed: later calls use a new connection, and calls in
                flight keep theirs.
            key_file: PEM file of that certificate's private key, without a password.
            server_name: The name that the server's certificate must have; "" for that of the
                target.
            api_key: The API key of the caller; "" for none.
            token: A token of the caller, in place of a key; or a function that returns one, called
                before each call, in its thread. An `AsyncClient` also takes a coroutine function.
                A pickle holds the key or token, too.
            allow_plaintext_credentials: Whether to send a key or token without TLS to another
                machine, where everybody on the way can read it.
            unknown: Nothing; any other argument is an error.

        Raises:
            TypeError: There is no such setting, or one has the wrong type.
            ValueError: The target is no address, the timeout is not positive and finite, a limit is
                out of range, settings of TLS do not fit together, or a key or token would be sent
                in plain text.
        """
        if unknown:
            raise unknown_argument_error("the client", unknown, _SETTINGS)
        self._target = valid_target(target)
        self._timeout_s = valid_timeout(timeout_s)
        self._credentials = credentials
        self._tls_settings: dict[str, Any] = {
            "tls": tls,
            "ca_file": ca_file,
            "certificate_file": certificate_file,
            "key_file": key_file,
            "server_name": server_name,
        }
        uses_files = bool(tls or ca_file or certificate_file or key_file)
        if uses_files and credentials is not None:
            raise ValueError("give either credentials, or tls and files")
        if server_name and not uses_files and credentials is None:
            raise ValueError("server_name needs TLS: set tls or ca_file")
        self._tls = TlsFiles(ca_file, certificate_file, key_file) if uses_files else None
        self._caller_settings: dict[str, Any] = {
            "api_key": api_key,
            "token": token,
            "allow_plaintext_credentials": allow_plaintext_credentials,
        }
        self._call_credentials = CallCredentials(api_key, token)
        is_safe = uses_files or credentials is not None or is_here(target)
        if self._call_credentials.exist and not is_safe and not allow_plaintext_credentials:
            raise ValueError(
                f"the key or token would be sent to {target} in plain text: set tls or ca_file, or"
                " allow_plaintext_credentials"
            )
        self._metadata = _pairs(metadata)
        self._health_check = health_check
        self._max_request_bytes = max_request_bytes
        self._request_limit = RequestLimit(max_request_bytes)
        self._concurrency = ConcurrencyLimit(max_concurrent_calls)
        self._retry_budget = RetryBudget()
        self._opening = threading.Lock()
        self._opened: _Opened | None = None
        # Channels with former certificates, until their calls have ended.
        self._former: list[_Opened] = []
        # Tasks that close them, of an `AsyncClient`.
        self._discarding: set[Any] = set()
        self._closed = False
        self._similarities: dict[str, str] = {}  # functions of models, by the name in calls

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
            **self._tls_settings,
            **self._caller_settings,
        )
        return make, ()

    @abstractmethod
    def _discard(self, channel: Any) -> None:
        """Close a channel that has no calls."""

    def _open(self, api: Any, slot: Slot) -> Stubs:
        """Return the stubs for a call; open a channel of `api`, `grpc` or `grpc.aio`, if needed.

        Args:
            api: The module.
            slot: The slot of the call.

        Raises:
            RuntimeError: The client is closed.
            ValueError: A file cannot be used.
        """
        with self._opening:
            self._check_open()
            if self._opened is None:
                self._opened = self._new_channel(api)
            elif self._tls is not None and self._tls.have_changed():
                self._replace_channel(api)
            self._opened.slots.add(slot)
            return self._opened.stubs

    def _replace_channel(self, api: Any) -> None:
        """Use new files for the next calls, if they can be used, and close former channels."""
        former = self._opened
        try:
            self._opened = self._new_channel(api)
        except ValueError as error:
            # Half of them may have been written: the next look reads them again.
            _logger.warning("the files of TLS have changed, but cannot be used: %s", error)
            return
        if former is not None:
            self._former.append(former)
        for one in [one for one in self._former if one.idle]:
            self._former.remove(one)
            self._discard(one.channel)

    def _new_channel(self, api: Any) -> _Opened:
        options: list[tuple[str, Any]] = [
            *_OPTIONS,
            # gRPC does not retry a request that is larger than this.
            ("grpc.per_rpc_retry_buffer_size", self._max_request_bytes + _RETRY_OVERHEAD_BYTES),
            *proxy_options(self._target),
            ("grpc.service_config", service_config(health_check=self._health_check)),
        ]
        if self._tls_settings["server_name"]:
            options.append(("grpc.ssl_target_name_override", self._tls_settings["server_name"]))
        credentials = self._tls.credentials() if self._tls else self._credentials
        channel = (
            api.insecure_channel(self._target, options)
            if credentials is None
            else api.secure_channel(self._target, credentials, options)
        )
        return _Opened(channel, Stubs.of(channel))

    def _release(self) -> list[Any]:
        """Mark the client as closed; return its channels."""
        with self._opening:
            opened = [*self._former, *([self._opened] if self._opened else [])]
            self._opened, self._former, self._closed = None, [], True
            return [one.channel for one in opened]

    def _call_metadata(self) -> Metadata:
        """Return what to send with a call."""
        return (*self._metadata, *self._call_credentials.metadata())

    def _check_open(self) -> None:
        """Raise RuntimeError if the client is closed."""
        if self._closed:
            raise RuntimeError("the client is closed")

    @abstractmethod
    def _start_stream(self, *arguments: Any) -> Any:
        """Start the call of a stream."""

    def _stream_calls(self) -> StreamCalls:
        return StreamCalls(
            self._start_stream, self._new_attempts, self._error_of, lambda: self._closed
        )

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


def _pairs(metadata: Metadata | Mapping[str, str | bytes]) -> Metadata:
    if isinstance(metadata, str):
        raise TypeError("metadata is one str; give pairs, or a dict")
    return tuple(metadata.items() if isinstance(metadata, Mapping) else metadata)


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
        TypeError: It is no number.
        ValueError: It is not a positive, finite number.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"timeout_s is {timeout_s!r}; give seconds: every call has a deadline")
    if not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s is {timeout_s}; it must be a positive, finite number")
    return timeout_s


# What a caller may have meant by an unknown setting.
_SETTINGS: Final = tuple(inspect.signature(ChannelOwner.__init__).parameters)[1:-1]
