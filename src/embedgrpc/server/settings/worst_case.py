"""Computes how much memory clients can occupy, from the settings."""

from embedgrpc.server.settings.settings import MIB, Settings

# An unread call occupies the window of its stream and gRPC's own state.
_CALL_BYTES = 64 * 1024 + 20 * 1024
# Buffers of a connection: twice what idle connections were measured to occupy.
_CONNECTION_BYTES = 80 * 1024
# The same over HTTP: what it may send before it is read, and the heads of requests sent ahead.
# Measured: up to 354 KiB.
_HTTP_CONNECTION_BYTES = 384 * 1024
# Measured: 56 KiB with TLS, 18 without.
_TLS_CONNECTION_BYTES = 40 * 1024
# Those that scrape are few; this limits what a flood of connections may take.
METRICS_CONNECTIONS = 64


def client_bytes(settings: Settings) -> int:
    """Return the most bytes that clients can occupy, in addition to the models.

    This counts open connections and calls, requests in progress or in transfer, and responses.
    """
    tls_bytes = _TLS_CONNECTION_BYTES if settings.tls_certificate_file else 0
    connection_bytes = _CONNECTION_BYTES + tls_bytes
    if settings.http_address:
        # Each of the two ports has so many connections.
        connection_bytes += _HTTP_CONNECTION_BYTES + tls_bytes
    metrics_bytes = 0
    if settings.metrics_address:
        metrics_bytes = METRICS_CONNECTIONS * (_HTTP_CONNECTION_BYTES + tls_bytes)
    return (
        settings.max_connections * connection_bytes
        + metrics_bytes
        + settings.max_calls * _CALL_BYTES
        # A received request may take twice its reservation; a stream that waits for a message
        # reserves a quarter of the largest.
        + (2 + 4) * settings.max_held_request_bytes
        # Incomplete messages to methods that reserve nothing.
        + 8 * settings.max_request_bytes
        + settings.max_held_answer_bytes
    )


def memory_warning(settings: Settings, available_bytes: int) -> str:
    """Return a warning if clients can occupy more than half of the memory; else empty.

    The other half is for the models and for running them.
    """
    worst = client_bytes(settings)
    if worst <= available_bytes // 2:
        return ""
    return (
        f"clients can occupy {worst // MIB} MiB, more than half of the"
        f" {available_bytes // MIB} MiB that the server may use; lower max_held_request_bytes,"
        " max_held_answer_bytes, max_calls or max_connections"
    )
