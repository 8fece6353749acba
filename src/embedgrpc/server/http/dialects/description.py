"""The description of the HTTP port: a document for machines, and a page for people."""

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from embedgrpc.server.caller import Need
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.docs_page import page, security_policy
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.openapi import BodyLimits, describe

_TAG = "Description"
_HTML = "text/html"
_NEED = Need(public_as="docs")


def description_routes(others: Sequence[Route]) -> tuple[Route, ...]:
    """Return the routes that describe the others, and themselves.

    Args:
        others: The other routes of the table.
    """

    async def show_document(exchange: Exchange) -> Answer:
        settings = exchange.served.settings
        limits = BodyLimits(settings.max_inputs, settings.max_request_bytes)
        return Answer(await asyncio.to_thread(document, limits, _public(exchange)))

    async def show_page(exchange: Exchange) -> Answer:
        return Answer(
            await asyncio.to_thread(html, _public(exchange)),
            content_type=_HTML,
            headers={"content-security-policy": security_policy()},
        )

    own = (
        Route(
            "GET",
            "/openapi.json",
            show_document,
            openai_error,
            "Describe this API in OpenAPI",
            _TAG,
            dict[str, Any],
            need=_NEED,
        ),
        Route(
            "GET",
            "/docs",
            show_page,
            openai_error,
            "Read about this API, and try it",
            _TAG,
            str,
            media_type=_HTML,
            need=_NEED,
        ),
    )

    # Made once, when somebody asks for it: that takes milliseconds.
    @cache
    def document(limits: BodyLimits, public: frozenset[str] | None) -> bytes:
        return describe((*others, *own), limits, public=public)

    @cache
    def html(public: frozenset[str] | None) -> bytes:
        return page((*others, *own), public=public)

    return own


def _public(exchange: Exchange) -> frozenset[str] | None:
    """Return what is public although calls need credentials; None where nobody needs any."""
    settings = exchange.served.settings
    return frozenset(settings.public) if settings.identifies_callers else None
