"""Where the server listens, and how gRPC treats its connections."""

import socket
from pathlib import Path

import grpc.aio

from embedgrpc.server.settings import Settings


class StartError(Exception):
    """The server cannot start; one line that says what to change.

    Attributes:
        settings_are_wrong: Whether other settings would help, rather than another machine.
    """

    def __init__(self, message: str, *, settings_are_wrong: bool) -> None:
        super().__init__(message)
        self.settings_are_wrong = settings_are_wrong


def listen(server: grpc.aio.Server, address: str) -> str:
    """Binds the address; returns it with the port that was taken.

    Raises:
        StartError: It cannot be bound.
    """
    _check_address(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise StartError(
            f"address {address}: cannot listen there; is another server running?",
            settings_are_wrong=False,
        )
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _check_address(address: str) -> None:
    """Refuses what gRPC would refuse without a reason, or take away from another server."""
    if not address.startswith("unix:"):
        host = address.rpartition(":")[0].strip("[]")
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise StartError(
                f"address {address}: host {host!r}: {error.strerror}", settings_are_wrong=True
            ) from None
        return
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    if not path.parent.is_dir():
        raise StartError(f"address {address}: there is no such folder", settings_are_wrong=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # gRPC would remove the socket of a server that runs, and take its place.
        if probe.connect_ex(str(path)) == 0:
            raise StartError(
                f"address {address}: another server is running there", settings_are_wrong=False
            )


def _ms(seconds: float) -> int:
    """Returns milliseconds as gRPC takes them: its largest number means without end."""
    return min(int(seconds * 1000), 2**31 - 1)


def channel_arguments(settings: Settings) -> list[tuple[str, int]]:
    """Returns gRPC's own settings; a key that it does not know is ignored in silence."""
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_send_message_length", settings.max_response_bytes),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # Both alike, or a header between the two is refused at random.
        ("grpc.max_metadata_size", 16_384),
        ("grpc.absolute_max_metadata_size", 16_384),
        # Else a stream that is not read takes in far more than its window.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)),
        # A stream may begin as late as when its connection is told to go; see `draining`.
        (
            "grpc.max_connection_age_grace_ms",
            _ms(settings.max_connection_age_s + settings.max_connection_age_grace_s),
        ),
        # Else a second server takes half of the first one's connections in silence.
        ("grpc.so_reuseport", 0),
    ]
