"""The table of all routes over HTTP."""

from embedgrpc.server.http.dialects import (
    cohere,
    metrics,
    openai,
    probes,
    rerank,
    score,
    services,
    tei,
    tei_all,
    tei_predict,
    tei_rerank,
    tei_similarity,
    tei_tokens,
)
from embedgrpc.server.http.dialects.description import description_routes
from embedgrpc.server.http.routing import Routes


def all_routes() -> Routes:
    """Return the routes of all dialects."""
    found = [
        one
        for dialect in (
            openai,
            rerank,
            score,
            cohere,
            tei,
            tei_rerank,
            tei_all,
            tei_predict,
            tei_similarity,
            tei_tokens,
            services,
            probes,
            metrics,
        )
        for one in dialect.ROUTES
    ]
    return Routes([*found, *description_routes(found)])


def metrics_routes() -> Routes:
    """Return the routes of the address that serves only metrics."""
    return Routes(metrics.ROUTES)
