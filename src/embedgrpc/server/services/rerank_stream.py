"""One StreamRerank call: queries with their documents in, rankings out as they are ready."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from embedgrpc.engine.errors import EngineError, InvalidRequestError, ShuttingDownError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.error_interceptor import is_cancelled, log_fault, stray_cancellation
from embedgrpc.server.contract.field_checks import check_count, check_id, out_of_order
from embedgrpc.server.contract.limits import describe_limits
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.ranker import Ranker
from embedgrpc.server.services.ranking_wire import ranking_wire
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import rerank_service_pb2

_RESULT_FIELD = 2
_ID_FIELD, _RANKING_FIELD, _ERROR_FIELD = 1, 2, 3


@dataclass(slots=True)
class _Query:
    """A query and the documents that have arrived.

    Attributes:
        inputs: How many inputs the stream has accepted for it.
        error: Why it has failed; its further documents are dropped.
    """

    id: str
    text: str
    documents: list[str] = field(default_factory=list)
    size_bytes: int = 0
    inputs: int = 0
    error: EngineError | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    """A `StreamRerankResult` in wire form, how many inputs it answers, and what it cost."""

    id: str
    wire: bytes
    inputs: int
    input_tokens: int


class RerankStream:
    """The state of one call.

    Args:
        catalog: The models.
        settings: The limits.
        requests: Its messages.
        context: The RPC's context.
    """

    def __init__(self, catalog: Catalog, settings: Settings, requests: Any, context: Any) -> None:
        self._catalog = catalog
        self._settings = settings
        self._context = context
        self.bidi: BidiStream[_Result] = BidiStream(
            context, requests, idle_timeout_s=settings.stream_idle_timeout_s
        )
        self._ids: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._query: _Query | None = None
        self._input_tokens = self._inputs = self._failed_inputs = 0

    async def run(self) -> None:
        """Serve the call to its end."""
        try:
            await self.bidi.run(self._read, self._pack)
        finally:
            describe_call(input_tokens=self._input_tokens)
            note_inputs(self._inputs)
            note_failed_inputs(self._failed_inputs)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        requests = self.bidi.receive()
        first = await anext(requests, None)
        if first is None:
            return
        if first.WhichOneof("step") != "setup":
            raise out_of_order("the first message must hold setup")
        setup = first.setup
        call = begin_call(
            self._context,
            WorkClass.BULK,
            self._settings,
            priority=setup.options.priority,
            field="setup.options.priority",
        )
        ranker = await self._set_up(setup)
        try:
            async for request in requests:
                if request.WhichOneof("step") != "part":
                    raise out_of_order("every message after the first must hold part")
                await self._accept(request.part, ranker, call)
            if self._query is not None and not self.bidi.is_draining:
                raise out_of_order("the stream ended before the last part of a query")
        finally:
            # What the stream has accepted must be answered.
            if self._query is not None and self._query.error is None:
                error = ShuttingDownError("the stream ended before the last part of the query")
                self._fail(self._query, error)

    async def _set_up(self, setup: rerank_service_pb2.StreamRerankSetup) -> Ranker:
        settings = self._settings
        served = self._catalog.find(setup.model, field="setup.model")
        accepted = client_response_bytes(
            self._context, setup.max_response_bytes, field="setup.max_response_bytes"
        )
        window = settings.max_stream_in_flight_inputs
        ranker = Ranker.of(
            served,
            setup.options,
            partial=setup.allow_partial,
            # All documents of a query must fit into the window.
            max_inputs=min(settings.max_inputs, window),
            max_response_bytes=min(settings.max_response_bytes, accepted),
            field="setup.options",
        )
        describe_call(
            operation="rerank", request_model=setup.model or served.id, response_model=served.id
        )
        self.bidi.set_window(window)
        await self.bidi.write_first(
            rerank_service_pb2.StreamRerankResponse(
                ready=rerank_service_pb2.StreamRerankReady(
                    model=served.id,
                    revision=ranker.loaded.revision,
                    fingerprint=ranker.loaded.fingerprint,
                    max_in_flight_inputs=window,
                    max_part_inputs=min(settings.max_stream_batch_inputs, window),
                    max_query_inputs=ranker.max_inputs,
                    limits=describe_limits(
                        settings, max_text_characters=ranker.loaded.max_characters
                    ),
                )
            )
        )
        return ranker

    async def _accept(
        self, part: rerank_service_pb2.StreamRerankPart, ranker: Ranker, call: Call
    ) -> None:
        """Add the documents of a message to their query, and start it when it is complete."""
        query = self._query
        if query is None:
            check_id(part.id, self._ids, field="part.id")
            self._ids.add(part.id)
            query = self._query = _Query(part.id, part.query)
        elif part.id != query.id:
            raise out_of_order("the parts of one query must follow each other")
        elif part.query:
            raise out_of_order("only the first part of a query may hold it")
        documents, size_bytes = part.documents, part.ByteSize()
        check_count(
            len(documents), limit=self._settings.max_stream_batch_inputs, field="part.documents"
        )
        count = len(query.documents) + len(documents)
        if query.error is None and count > ranker.max_inputs:
            # At once: the window has no room for more of its documents.
            query.error = InvalidRequestError(
                f"the query has {count} documents or more; the limit is {ranker.max_inputs}",
                field="documents",
                metadata={"label": "TOO_MANY_INPUTS", "limit": str(ranker.max_inputs)},
            )
            self._fail(query, query.error)
        if query.error is None:
            await self.bidi.accept(
                len(documents), answer_bytes=ranker.bound_response(len(documents), size_bytes)
            )
            query.inputs += len(documents)
            self._inputs += len(documents)
            query.documents.extend(documents)
            query.size_bytes += size_bytes
        if part.more:
            self.bidi.incomplete_inputs = 0 if query.error else query.inputs
            return
        self.bidi.incomplete_inputs = 0
        self._query = None
        if query.error is not None:
            return
        task = asyncio.create_task(self._rank(query, ranker, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _rank(self, query: _Query, ranker: Ranker, call: Call) -> None:
        try:
            ranking, usage = await ranker.rank(
                query.text,
                query.documents,
                call,
                size_bytes=query.size_bytes,
                pack=ranking_wire,
            )
        except EngineError as error:
            # Its frames hold a future, which holds it.
            self._fail(query, error.with_traceback(None))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._fail(query, stray_cancellation("StreamRerank"))
        except Exception as error:  # noqa: BLE001 - a stream waits for every result
            fault = EngineError.fault()
            log_fault(error, fault, method="StreamRerank")
            self._fail(query, fault)
        else:
            self._answer(query, delimited(_RANKING_FIELD, ranking), usage.input_tokens)

    def _fail(self, query: _Query, error: EngineError) -> None:
        self._failed_inputs += query.inputs
        self._answer(query, delimited(_ERROR_FIELD, item_error(error).SerializeToString()), 0)

    def _answer(self, query: _Query, outcome: bytes, input_tokens: int) -> None:
        wire = (delimited(_ID_FIELD, query.id.encode()) if query.id else b"") + outcome
        self.bidi.answer(_Result(query.id, wire, query.inputs, input_tokens))

    def _pack(self, outbox: deque[_Result]) -> tuple[Any, int]:
        result = outbox.popleft()
        self._ids.discard(result.id)
        self._input_tokens += result.input_tokens
        return delimited(_RESULT_FIELD, result.wire), result.inputs
