"""Opens channels to the endpoints of a Triton server."""

from dataclasses import dataclass

import grpc
import grpc.aio

# No keepalive: a server takes pings more often than every 300 s for an attack, and goes away.
_OPTIONS = (
    # Vectors of tokens are larger than the default of 4 MiB; what is asked for bounds the answer.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that was restarted is to be used again at once, not after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # In spite of its name the longest that an attempt to connect may take, if it is longer than
    # the wait until the next: with less than that, a slow link is never connected.
    ("grpc.min_reconnect_backoff_ms", 2000),
    # Else two models on one server share a connection, and its flow control.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy that is set for downloads from the Hub knows nothing of servers near by.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What TLS needs, in PEM.

    Attributes:
        ca: Certificates of those who may vouch for the server; None for those that gRPC has.
        certificate: The client's own, with its chain; None for no client certificate.
        key: Its private key; None without.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


def open_channel(address: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """Opens a channel of the running event loop. It connects when it is called.

    Args:
        address: HOST:PORT.
        tls: What TLS needs; None for a connection without TLS.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
