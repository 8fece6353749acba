"""Opens channels to Triton servers."""

from dataclasses import dataclass

import grpc
import grpc.aio

# No keepalive: a server treats pings more often than every 300 s as an attack, and sends GOAWAY.
_OPTIONS = (
    # Token vectors exceed the default of 4 MiB; the requested outputs bound the answer.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Reconnect to a restarted server at once, not after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name, the timeout of a connection attempt: with a shorter one, a slow link never
    # connects.
    ("grpc.min_reconnect_backoff_ms", 2000),
    # Otherwise two models on one server share a connection and its flow control.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy for downloads from the Hub does not reach servers near by.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificates and key for TLS, in PEM.

    Attributes:
        ca: The CA bundle that verifies the server; None for gRPC's own roots.
        certificate: The client's certificate with its chain; None for no client certificate.
        key: The private key of the client's certificate; None without.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


def open_channel(address: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """Open a channel on the running event loop. It connects at its first call.

    Args:
        address: HOST:PORT.
        tls: Certificates and key; None for a connection without TLS.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
