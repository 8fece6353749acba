"""Answers requests over HTTP: every one gets a response in the form of its dialect."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from embedgrpc.engine.errors import EngineError, InvalidRequestError, RateLimitedError, Reason
from embedgrpc.server.calls.error_interceptor import is_cancelled, log_fault, stray_cancellation
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.connections.activity import ConnectionActivity
from embedgrpc.server.connections.connection_table import address_of
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.http.body_size import check_values
from embedgrpc.server.http.call import HttpCall, HttpContext
from embedgrpc.server.http.connection import Connection
from embedgrpc.server.http.cors import Cors, requested_method
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route, Served
from embedgrpc.server.http.failures import (
    STATUSES,
    ErrorForm,
    HttpError,
    challenge_headers,
    retry_headers,
)
from embedgrpc.server.http.pace import Pace, cost_s
from embedgrpc.server.http.pieces import PiecewiseResponse
from embedgrpc.server.http.protocol import (
    VERSIONS,
    answer_in_http_1_1,
    check_media_type,
    check_protocol,
)
from embedgrpc.server.http.routing import Match, Routes, decode
from embedgrpc.server.rpc.handlers import forget_frames
from embedgrpc.server.rpc.metadata_size import check_metadata_size
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.http_tracing import HttpRequest, HttpTracer, set_status

_logger = logging.getLogger(__name__)

_HEADERS_TOO_LARGE = 431
# What callers get before their bodies are read, and must see: trying again does not help.
_REFUSALS = frozenset({Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED})
# The statuses that say that a request is wrong. Not among them: 429, which asks for patience.
_MISTAKES = frozenset({400, 401, 403, 404, 405, 411, 413, 415, 417, 422, _HEADERS_TOO_LARGE})
# No client sees it: proxies have this number in their logs.
_CLIENT_LEFT = "499"
_HEADERS = {"server": "embedgrpc", "x-content-type-options": "nosniff"}
# Counting the values of this much, and decoding it, holds up the event loop for three milliseconds.
_LARGE_BYTES = 128 * 1024
# From this size on, what is decoded may take a dialect some milliseconds, too.
_LONG_BYTES = 16 * 1024


class HttpDoor:
    """The handler of all requests.

    Args:
        served: The server.
        routes: The table of routes.
        calls: The registry of calls, that of gRPC.
        activity: Records which connections are in use.
        pace: Slows down addresses whose requests are wrong.
        tracer: Traces calls, but for probes; None where nothing is exported.

    Attributes:
        draining: Whether the server is about to stop: connections are closed after their answers.
    """

    def __init__(
        self,
        served: Served,
        routes: Routes,
        calls: OpenCalls,
        activity: ConnectionActivity,
        *,
        pace: Pace,
        tracer: HttpTracer | None = None,
    ) -> None:
        self.draining = False
        self._pace = pace
        self._served = served
        self._routes = routes
        self._calls = calls
        self._activity = activity
        self._tracer = tracer
        # Decoding holds the interpreter lock: several bodies at once would hold it in turn.
        self._decoding = asyncio.Lock()
        origins = served.settings.http_allowed_origins
        self._cors = Cors(origins) if origins else None

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; aiohttp calls this in a task for each."""
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.begin(asyncio.current_task())
        context = HttpContext(request, max_bytes=self._served.settings.max_request_bytes)
        record = CallRecord("http", "")
        call = self._calls.open(context, record, HttpCall)
        with self._activity.calling(context.peer()):
            if self._tracer is None:
                answer = await self._answer(request, context, call)
            else:
                answer = await self._answer_traced(self._tracer, request, context, call)
            if answer.status in _MISTAKES:
                await self._slow_down(connection, context, call)
        record.status = str(answer.status)
        call.begin_unary_response(len(answer.body))
        if request.version not in VERSIONS:
            answer_in_http_1_1(request)
        # Only GET and POST have a body to send in pieces.
        make = web.Response
        if request.secure and request.method in {"GET", "POST"}:
            make = PiecewiseResponse
        response = make(
            body=answer.body,
            status=answer.status,
            headers={
                **_HEADERS,
                # Not aiohttp's argument, which takes no parameters of a media type.
                "content-type": answer.content_type,
                **(self._cors.headers(request.headers) if self._cors else {}),
                **context.headers,
                **answer.headers,
            },
        )
        if self.draining or not context.body_is_read:
            # Else the rest of the body would be taken for the next request.
            response.force_close()
        return response

    async def _slow_down(
        self, connection: web.RequestHandler | None, context: HttpContext, call: OpenCall
    ) -> None:
        """Charge a client for its mistake, and let the answer wait if it has made many."""
        closes = not context.body_is_read
        if closes and isinstance(connection, Connection):
            # What it has sent of a large body was in memory.
            connection.count_refusal()
        seconds = cost_s(body_bytes=context.body_bytes, closes=closes)
        pause_s = self._pace.charge(address_of(context.peer()), seconds)
        if pause_s:
            # What it holds would keep others waiting.
            call.release_unary_request()
            await self._pace.wait(pause_s)

    async def _answer_traced(
        self, tracer: HttpTracer, request: web.BaseRequest, context: HttpContext, call: OpenCall
    ) -> Answer:
        route = self._routes.route(request.method, request.path)
        if route is not None and route.is_open:
            return await self._answer(request, context, call)
        traced = HttpRequest(
            method=request.method,
            route=route.path if route else "",
            scheme=request.scheme,
            version=f"{request.version.major}.{request.version.minor}",
            host=request.headers.get("host", ""),
            peer=context.peer(),
            metadata=context.invocation_metadata(),
        )
        with tracer.span(traced) as span:
            call.record.span = span.get_span_context()
            answer = await self._answer(request, context, call)
            set_status(span, answer.status)
        return answer

    async def _answer(
        self, request: web.BaseRequest, context: HttpContext, call: OpenCall
    ) -> Answer:
        form: ErrorForm = openai_error
        fields: Mapping[str, str] = {}
        headers: Mapping[str, str] = {}
        name = "http"
        status = None
        try:
            check_protocol(request)
            if self._cors and (method := requested_method(request.method, request.headers)):
                return self._preflight(self._cors, request, method)
            match = self._routes.find(request.method, request.path)
            route = match.routes[0]
            form, fields, name = route.errors, route.fields, route.path
            call.record.method = f"{route.method} {route.path}"
            call.record.is_probe = route.is_open
            return await self._serve(request, context, call, match)
        except HttpError as failure:
            error, status, headers = failure.error, failure.status, failure.headers
        except _RouteError as failure:
            error, form, fields = failure.error, failure.route.errors, failure.route.fields
        except EngineError as failure:
            error = failure
        except asyncio.CancelledError:
            # aiohttp cancels the task when the client has left.
            if is_cancelled():
                call.record.status = _CLIENT_LEFT
                raise
            error = stray_cancellation(name)
        except Exception as unexpected:  # noqa: BLE001 - the last place that can answer
            error = EngineError.fault()
            log_fault(unexpected, error, method=name)
        forget_frames(error)
        if error.reason in _REFUSALS:
            await context.discard_body()
        rename_fields(error, fields)
        status, body = form(error, status or STATUSES[error.reason])
        call.record.fail(error, str(status))
        headers = {**headers, **challenge_headers(error), **retry_headers(error)}
        return Answer(body, status, headers=headers)

    def _preflight(self, cors: Cors, request: web.BaseRequest, method: str) -> Answer:
        """Say what a web page may send.

        Raises:
            HttpError: There is no such path, or it does not have the method.
        """
        self._routes.find(method, request.path)
        methods = self._routes.methods(request.path)
        return Answer(b"", 204, headers=cors.preflight_headers(request.headers, methods))

    async def _serve(
        self, request: web.BaseRequest, context: HttpContext, call: OpenCall, match: Match
    ) -> Answer:
        """Read the request, choose its dialect and run it.

        Raises:
            HttpError: A rule of HTTP is broken.
            EngineError: The request fails before its dialect is known.
            _RouteError: It fails after that.
        """
        try:
            check_metadata_size(context.invocation_metadata())
        except InvalidRequestError as error:
            raise HttpError(_HEADERS_TOO_LARGE, error) from None
        first, need = match.routes[0], match.need
        await self._calls.admit(call, need)
        if not first.is_open:
            self._calls.take_place(call)
            try:
                reads_texts = first.method == "POST" and need.runs_model
                self._calls.count_request(call, need, reads_texts=reads_texts)
            except RateLimitedError:
                await context.drop_small_body()
                raise
        data = b""
        if first.method == "POST":
            check_media_type(request)
            data = await call.read_first()
        route, body = await self._decode(match, data)
        exchange = Exchange(self._served, context, body, len(data), match.argument)
        del data
        try:
            if route.need is not need:
                call.caller.check(route.need)
            answer = await route.handle(exchange)
        except EngineError as error:
            raise _RouteError(route, error) from None
        if not exchange.spent.device:
            return answer
        return replace(answer, headers={**exchange.spent.headers(), **answer.headers})

    async def _decode(self, match: Match, data: bytes) -> tuple[Route, Any]:
        if match.routes[0].body is None:
            return match.routes[0], None
        max_inputs = self._served.settings.max_inputs
        if len(data) > _LARGE_BYTES:
            async with self._decoding:
                await asyncio.to_thread(check_values, data, max_inputs=max_inputs)
                return await asyncio.to_thread(decode, match, data)
        check_values(data, max_inputs=max_inputs)
        decoded = decode(match, data)
        if len(data) > _LONG_BYTES:
            await asyncio.sleep(0)
        return decoded


class _RouteError(Exception):
    """An error of a request whose dialect is known."""

    def __init__(self, route: Route, error: EngineError) -> None:
        super().__init__(error.message)
        self.route = route
        self.error = error
