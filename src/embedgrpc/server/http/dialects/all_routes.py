"""The table of all routes over HTTP."""

from embedgrpc.server.http.dialects import openai, probes, tei
from embedgrpc.server.http.routing import Routes


def all_routes() -> Routes:
    """Return the routes of all dialects."""
    return Routes([*openai.ROUTES, *tei.ROUTES, *probes.ROUTES])
