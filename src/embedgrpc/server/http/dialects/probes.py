"""Health for load balancers and orchestrators. Probes are answered even in an overload."""

from embedgrpc.engine.errors import BackendUnavailableError
from embedgrpc.server.caller import PUBLIC
from embedgrpc.server.http.dialects.tei import tei_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route

_TAG = "Health"
_PLAIN = "text/plain"


async def ready(exchange: Exchange) -> Answer:
    """Answer 200 while the server can serve calls.

    Raises:
        BackendUnavailableError: It loads its models, is about to stop, or a model is unhealthy.
    """
    if not exchange.served.is_ready():
        raise BackendUnavailableError("the server is not ready")
    return Answer(b"ok", content_type=_PLAIN)


async def live(_: Exchange) -> Answer:
    """Answer 200 while the process answers at all."""
    return Answer(b"ok", content_type=_PLAIN)


ROUTES = (
    *(
        Route(
            "GET", path, ready, tei_error, "Whether the server can serve calls", _TAG, str,
            media_type=_PLAIN, is_open=True, need=PUBLIC,
        )
        for path in ("/health", "/health/ready", "/ping")
    ),
    Route(
        "GET", "/health/live", live, tei_error, "Whether the process answers", _TAG, str,
        media_type=_PLAIN, is_open=True, need=PUBLIC,
    ),
)  # fmt: skip
