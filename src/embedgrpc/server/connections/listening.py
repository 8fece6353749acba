"""Binds the server's addresses, and makes gRPC's settings for its connections."""

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from embedgrpc.server.rpc.metadata_size import METADATA_BYTES_MAX
from embedgrpc.server.settings.settings import Settings

_logger = logging.getLogger(__name__)

# The most calls that wait to be accepted before gRPC begins to cancel some.
_UNREAD_CALLS = 4096
# Open files besides the connections: libraries, models, channels to Triton.
_DESCRIPTORS = 256
# The longest service name in a health request is far shorter.
HEALTH_MESSAGE_BYTES = 4096
_HEALTH_STREAMS = 16
_COMMON_ARGUMENTS = (
    # Equal, or gRPC refuses headers between the two sizes at random.
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    # Else a stream that is not read receives far more than its window.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Else a second server silently takes half of the first one's connections.
    ("grpc.so_reuseport", 0),
)
# The address of a Unix socket has 108 bytes, of which the last is a zero.
_PATH_BYTES_MAX = 107
_REASONS = {
    errno.EADDRINUSE: "another server is running there; set another port with {flag} {host}:PORT",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, such as"
    " {flag} 127.0.0.1:{port}, or {flag} 0.0.0.0:{port} for all of them",
    errno.EACCES: "this user may not use the port; set one above 1023 with {flag} {host}:PORT",
}


class StartError(Exception):
    """The server cannot start; the message says what to change, in one line.

    Attributes:
        settings_are_wrong: Whether other settings would help.
    """

    def __init__(self, message: str, *, settings_are_wrong: bool) -> None:
        super().__init__(message)
        self.settings_are_wrong = settings_are_wrong


def listen(
    server: grpc.aio.Server,
    address: str,
    *,
    unix_socket_mode: str = "",
    flag: str = "--address",
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Bind an address; return it with the actual port.

    Args:
        server: The server to bind.
        address: HOST:PORT or unix:PATH.
        unix_socket_mode: The mode of a Unix socket, in octal; empty applies the umask.
        flag: The flag that sets the address, for errors.
        credentials: For TLS; a Unix socket has none.

    Raises:
        StartError: It cannot be bound.
    """
    _check_address(address, flag)
    try:
        if credentials is not None and not address.startswith("unix:"):
            port = server.add_secure_port(address, credentials)
        else:
            with _umask(unix_socket_mode if address.startswith("unix:") else ""):
                port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise StartError(
            f"cannot listen on {address}; set another {flag}", settings_are_wrong=False
        )
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def bind_sockets(
    address: str, *, unix_socket_mode: str, flag: str
) -> tuple[list[socket.socket], str]:
    """Bind an address without gRPC.

    Args:
        address: HOST:PORT or unix:PATH.
        unix_socket_mode: The mode of a Unix socket, in octal; empty applies the umask.
        flag: The flag that sets the address, for errors.

    Returns:
        The sockets, one for each address of the host, and the address with the actual port.

    Raises:
        StartError: It cannot be bound.
    """
    _check_address(address, flag)
    with ExitStack() as opened:
        try:
            if address.startswith("unix:"):
                sockets = [opened.enter_context(_bind_path(address, unix_socket_mode))]
            else:
                sockets, address = _bind_host(address, opened)
        except OSError as error:
            raise StartError(
                f"cannot listen on {address}: {error.strerror}; set another {flag}",
                settings_are_wrong=False,
            ) from None
        opened.pop_all()
    return sockets, address


def _bind_path(address: str, mode: str) -> socket.socket:
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    # `_check_address` has made sure that no server listens there.
    path.unlink(missing_ok=True)
    with _umask(mode):
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
    return bound


def _bind_host(address: str, opened: ExitStack) -> tuple[list[socket.socket], str]:
    """Bind every address of a host on one port; those that this machine lacks are left out."""
    port = port_of(address)
    sockets: list[socket.socket] = []
    refusal: OSError | None = None
    for family, _, _, _, place in socket.getaddrinfo(
        _host_of(address), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        bound = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            bound.bind((place[0], port, *place[2:]))
        except OSError as error:
            refusal = error
            continue
        port = bound.getsockname()[1]
        sockets.append(bound)
    if not sockets:
        raise refusal or OSError(errno.EADDRNOTAVAIL, "no address")
    return sockets, f"{address.rpartition(':')[0]}:{port}"


def is_dual_stack(address: str) -> bool:
    """Return whether gRPC listens on all IPv6 addresses, too, for an address of all IPv4 ones."""
    return _host_of(address) == "0.0.0.0" and socket.has_dualstack_ipv6()  # noqa: S104 - compared


@contextmanager
def _umask(mode: str) -> Iterator[None]:
    """Create a socket with its mode. Nothing else in the process creates files meanwhile."""
    if not mode:
        yield
        return
    before = os.umask(0o777 & ~int(mode, 8))
    try:
        yield
    finally:
        os.umask(before)


def _host_of(address: str) -> str:
    return "" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]")


def _check_address(address: str, flag: str) -> None:
    """Refuse what gRPC would refuse without a reason, or take from another server."""
    if address.startswith("unix:"):
        _check_path(address, address.removeprefix("unix:").removeprefix("//"))
        return
    host, port = _host_of(address), address.rpartition(":")[2]
    try:
        found = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(
            f"address {address}: host {host!r}: {error.strerror}", settings_are_wrong=True
        ) from None
    refusals = [why for one in found if (why := _try_to_bind(one[0], one[4]))]
    taken = [error for error in refusals if error.errno == errno.EADDRINUSE]
    # A host name may have addresses that this machine lacks, such as IPv6 ones.
    if taken or len(refusals) == len(found):
        refusal = (taken or refusals)[0]
        reason = _REASONS.get(refusal.errno or 0, refusal.strerror or "")
        raise StartError(
            f"cannot listen on {address}:"
            f" {reason.format(flag=flag, host=address.rpartition(':')[0], port=port)}",
            settings_are_wrong=refusal.errno in (errno.EADDRNOTAVAIL, errno.EACCES),
        )


def _try_to_bind(family: socket.AddressFamily, place: Any) -> OSError | None:
    """Bind an address for a moment, as gRPC will; return the error if that fails."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As gRPC does: connections that have just ended do not block the address.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(place)
    except OSError as error:
        return error
    return None


def _check_path(address: str, path: str) -> None:
    size = len(os.fsencode(path))
    if size > _PATH_BYTES_MAX:
        raise StartError(
            f"address {address}: the path has {size} bytes; the limit is {_PATH_BYTES_MAX}",
            settings_are_wrong=True,
        )
    parent = Path(path).parent
    if not parent.is_dir():
        raise StartError(f"address {address}: there is no such folder", settings_are_wrong=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # gRPC would remove the socket of a running server, and take its place.
        if probe.connect_ex(path) == 0:
            raise StartError(
                f"address {address}: another server is running there", settings_are_wrong=False
            )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StartError(
            f"address {address}: the folder {parent} cannot be written", settings_are_wrong=True
        )
    if Path(path).exists() and not Path(path).is_socket():
        raise StartError(
            f"address {address}: there is something else than a socket", settings_are_wrong=True
        )


def _ms(seconds: float) -> int:
    """Return milliseconds for gRPC, where the largest number means infinity."""
    return min(int(seconds * 1000), 2**31 - 1)


def port_of(address: str) -> int:
    """Return the port of an address; 0 for a Unix socket."""
    return 0 if address.startswith("unix:") else int(address.rpartition(":")[2])


def allow_descriptors(*, needed: int, wanted: int) -> None:
    """Raise the process's limit of open files, if necessary.

    The limit from a shell or systemd is often 1,024, which the process may raise itself.

    Args:
        needed: How many connections there may be.
        wanted: How many there may be for a moment.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + _DESCRIPTORS:
        return
    possible = wanted + _DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        possible = min(possible, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < needed + _DESCRIPTORS:
        _logger.warning(
            "the process may open too few files for its connections",
            extra={"limit": possible, "needed": needed + _DESCRIPTORS},
        )


def channel_arguments(settings: Settings, *, max_connections: int) -> list[tuple[str, int]]:
    """Return gRPC's own settings; it silently ignores unknown keys.

    Args:
        settings: The settings.
        max_connections: The number of connections from which on gRPC refuses new ones.
    """
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_send_message_length", settings.max_response_bytes),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        # Beyond the first number gRPC cancels some of the calls that wait to be accepted, and
        # beyond the second all others; clients do not retry a cancelled call.
        ("grpc.server.max_pending_requests", _UNREAD_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _UNREAD_CALLS),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", _ms(settings.max_connection_idle_s)),
        ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)),
        # A stream may begin as late as the GOAWAY of its connection; see `open_streams`.
        (
            "grpc.max_connection_age_grace_ms",
            _ms(settings.max_connection_age_s + settings.max_connection_age_grace_s),
        ),
        *_COMMON_ARGUMENTS,
    ]


def health_channel_arguments(*, max_connections: int) -> list[tuple[str, int]]:
    """Return gRPC's settings for a listener that serves only health."""
    return [
        ("grpc.max_receive_message_length", HEALTH_MESSAGE_BYTES),
        ("grpc.max_send_message_length", HEALTH_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", _HEALTH_STREAMS),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.max_connection_idle_ms", 60_000),
        *_COMMON_ARGUMENTS,
    ]
