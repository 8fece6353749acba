"""Metrics for Prometheus and whatever else reads its formats."""

from embedgrpc.server.caller import Need, Scope
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route


async def show_metrics(exchange: Exchange) -> Answer:
    """Answer with all metrics, in OpenMetrics if the client prefers that."""
    body, kind = await exchange.served.metrics.write(exchange.context.header("accept"))
    return Answer(body, content_type=kind)


ROUTES = (
    Route(
        "GET", "/metrics", show_metrics, openai_error, "The metrics of the server", "Prometheus",
        str, media_type="text/plain", is_open=True,
        need=Need(scope=Scope.METRICS, public_as="metrics"),
    ),
)  # fmt: skip
