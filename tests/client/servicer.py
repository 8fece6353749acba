"""A small embedgrpc server for tests of the client: real gRPC, made-up results.

A text such as "fail:INPUT_TOO_LONG" fails with that reason, a blank one with EMPTY_INPUT.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedgrpc.client.errors import ERRORS_BY_REASON
from embedgrpc.v1 import (
    classify_service_pb2,
    classify_service_pb2_grpc,
    common_pb2,
    embedding_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    rerank_service_pb2,
    rerank_service_pb2_grpc,
    tokenizer_service_pb2,
    tokenizer_service_pb2_grpc,
)
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import (
    DIMENSIONS,
    classification,
    item_error,
    limits,
    model,
    partial_embedding,
    ranking,
    reason_of,
    stream_classification,
    stream_result,
)


@dataclass
class Refusal:
    """The status of a unary call that fails."""

    code: grpc.StatusCode
    message: str = "refused"
    details: tuple[Any, ...] = ()
    pushback_ms: str | None = None


@dataclass
class Script:
    """The behaviour of the server, and what it received."""

    refusals: deque[Refusal] = field(default_factory=deque)
    max_in_flight_inputs: int = 8
    max_batch_inputs: int = 4
    page_size: int = 2
    page_tokens: Iterator[str] | None = None  # replaces those of the pages
    model_count: int = 5
    one_by_one: bool = False  # one result in each response
    reverse: bool = False  # the last input of a batch first
    end_stream_after: int | None = None  # this many results, with UNAVAILABLE
    end_stream_message: str = "gone"
    # Streams that end early: after how many results of all streams so far, and with what.
    breaks: deque[tuple[int, Refusal]] = field(default_factory=deque)
    fingerprints: list[str] = field(default_factory=lambda: ["f1"])  # of streams; the last repeats
    overloads: dict[str, int] = field(default_factory=dict)  # refusals left, by text in a stream
    stay_silent: bool = False  # never respond on a stream
    calls: list[Any] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)  # also those that gRPC's core answers
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # in clients' certificates, by unary call
    messages: list[Any] = field(default_factory=list)
    answered_count: int = 0
    stream_ended: threading.Event = field(default_factory=threading.Event)
    serving: tuple[str, ...] = ("embedgrpc.v1.EmbeddingService",)  # beside ""
    watch_status: str = "SERVING"
    watched: list[str] = field(default_factory=list)
    on_call: Callable[[Any], object] = id  # called at each unary call
    hold_calls: bool = False  # never respond to unary calls
    hold_answers: threading.Event | None = None  # no results before it is set
    window_full: threading.Event = field(default_factory=threading.Event)

    def next_fingerprint(self) -> str:
        """Return the fingerprint of the next stream."""
        return self.fingerprints.pop(0) if len(self.fingerprints) > 1 else self.fingerprints[0]


class Servicer(
    embedding_service_pb2_grpc.EmbeddingServiceServicer,
    rerank_service_pb2_grpc.RerankServiceServicer,
    classify_service_pb2_grpc.ClassifyServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    tokenizer_service_pb2_grpc.TokenizerServiceServicer,
    health_pb2_grpc.HealthServicer,  # type: ignore[misc] # ships no types
):
    """All services; `script` sets their behaviour."""

    def __init__(self) -> None:
        self.script = Script()

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Embed all texts, or fail as the first text says that asks for it."""
        await self._begin(request, context)
        if not request.texts:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field="texts", description="empty"
            )
            details = (
                info("INVALID_REQUEST"),
                error_details_pb2.BadRequest(field_violations=[violation]),
            )
            await _abort(context, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no texts", details))
        if not request.allow_partial:
            await _fail_as_asked("texts", request.texts, context)
        return pb.EmbedResponse(
            embeddings=[partial_embedding(text, request.options) for text in request.texts],
            model="model-0",
            revision="r1",
            fingerprint="f1",
            usage=common_pb2.Usage(input_tokens=sum(map(len, request.texts))),
        )

    async def StreamEmbed(  # noqa: N802
        self, requests: AsyncIterator[pb.StreamEmbedRequest], context: Any
    ) -> AsyncIterator[pb.StreamEmbedResponse]:
        """Answer batch by batch; an input fails if its text asks for it."""
        ready = pb.StreamEmbedReady(dimensions=DIMENSIONS)
        async for results in self._answer_batches(requests, context, ready, stream_result):
            yield results

    async def StreamClassify(  # noqa: N802
        self, requests: AsyncIterator[classify_service_pb2.StreamClassifyRequest], context: Any
    ) -> AsyncIterator[classify_service_pb2.StreamClassifyResponse]:
        """Answer batch by batch; an input fails if its text, or its first one, asks for it."""
        ready = classify_service_pb2.StreamClassifyReady()
        async for results in self._answer_batches(requests, context, ready, stream_classification):
            yield results

    async def _answer_batches(
        self,
        requests: AsyncIterator[Any],
        context: Any,
        ready: Any,
        answer: Callable[[Any, Any], Any],
    ) -> AsyncIterator[Any]:
        script = self.script
        is_embedding = isinstance(ready, pb.StreamEmbedReady)
        respond: Any = (
            pb.StreamEmbedResponse if is_embedding else classify_service_pb2.StreamClassifyResponse
        )
        collect: Any = (
            pb.StreamEmbedResults if is_embedding else classify_service_pb2.StreamClassifyResults
        )
        try:
            setup = (await anext(requests)).setup
            script.calls.append(setup)
            script.metadata = list(context.invocation_metadata())
            if setup.model == "absent":
                refusal = Refusal(
                    grpc.StatusCode.NOT_FOUND, "no such model", (info("MODEL_NOT_FOUND"),)
                )
                await _abort(context, refusal)
            if script.stay_silent:
                await asyncio.Event().wait()
            ready.model, ready.revision, ready.fingerprint = (
                "model-0",
                "r1",
                script.next_fingerprint(),
            )
            ready.max_in_flight_inputs = script.max_in_flight_inputs
            ready.max_batch_inputs = script.max_batch_inputs
            yield respond(ready=ready)
            received_count = 0
            held: list[Any] = []
            async for request in requests:
                script.messages.append(request)
                received_count += len(request.batch.inputs)
                held += request.batch.inputs
                if script.hold_answers is not None and not script.hold_answers.is_set():
                    if received_count < script.max_in_flight_inputs:
                        continue
                    script.window_full.set()
                    await asyncio.to_thread(script.hold_answers.wait)
                results = [
                    _overloaded(script, each) or answer(each, setup.options) for each in held
                ]
                held = []
                script.answered_count += len(results)
                while script.one_by_one and len(results) > 1:
                    yield respond(results=collect(results=[results.pop(0)]))
                yield respond(
                    results=collect(
                        results=reversed(results) if script.reverse else results,
                        usage=common_pb2.Usage(input_tokens=len(results)),
                    )
                )
                if script.answered_count == script.end_stream_after:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, script.end_stream_message)
                await _break_as_planned(script, context)
        finally:
            script.stream_ended.set()

    async def Rerank(  # noqa: N802
        self, request: rerank_service_pb2.RerankRequest, context: Any
    ) -> rerank_service_pb2.RerankResponse:
        """Rank the documents, or fail as the first says that asks for it."""
        await self._begin(request, context)
        if not request.allow_partial:
            await _fail_as_asked("documents", request.documents, context)
        ranked = ranking(request.query, list(request.documents), request.options)
        return rerank_service_pb2.RerankResponse(
            results=ranked.results,
            failures=ranked.failures,
            model="model-0",
            usage=ranked.usage,
        )

    async def Classify(  # noqa: N802
        self, request: classify_service_pb2.ClassifyRequest, context: Any
    ) -> classify_service_pb2.ClassifyResponse:
        """Score two labels by the length of each input, or fail as the first input says."""
        await self._begin(request, context)
        pairs = (
            one.first if reason_of(one.first) else one.first + one.second for one in request.pairs
        )
        inputs = [*request.texts, *pairs]
        if not request.allow_partial:
            await _fail_as_asked("inputs", inputs, context)
        return classify_service_pb2.ClassifyResponse(
            classifications=map(classification, inputs),
            model="model-0",
            revision="r1",
            fingerprint="f1",
            usage=common_pb2.Usage(input_tokens=sum(map(len, inputs))),
        )

    async def StreamRerank(  # noqa: N802
        self, requests: AsyncIterator[rerank_service_pb2.StreamRerankRequest], context: Any
    ) -> AsyncIterator[rerank_service_pb2.StreamRerankResponse]:
        """Rank query by query; a query fails if its text asks for it."""
        script = self.script
        setup = (await anext(requests)).setup
        script.calls.append(setup)
        if script.refusals:
            await _abort(context, script.refusals.popleft())
        yield rerank_service_pb2.StreamRerankResponse(
            ready=rerank_service_pb2.StreamRerankReady(
                model="model-0",
                fingerprint=script.next_fingerprint(),
                max_in_flight_inputs=script.max_in_flight_inputs,
                max_part_inputs=script.max_batch_inputs,
                max_query_inputs=script.max_in_flight_inputs,
                limits=limits(),
            )
        )
        query = ""
        documents: list[str] = []
        async for request in requests:
            script.messages.append(request)
            part = request.part
            query = query or part.query
            documents += part.documents
            if part.more:
                continue
            result = rerank_service_pb2.StreamRerankResult(id=part.id)
            if reason_of(query):
                result.error.CopyFrom(item_error(query))
            else:
                result.ranking.CopyFrom(ranking(query, documents, setup.options))
            script.answered_count += len(documents)
            query, documents = "", []
            yield rerank_service_pb2.StreamRerankResponse(result=result)
            if script.answered_count == script.end_stream_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, script.end_stream_message)
            await _break_as_planned(script, context)

    async def Tokenize(  # noqa: N802
        self, request: tokenizer_service_pb2.TokenizeRequest, context: Any
    ) -> tokenizer_service_pb2.TokenizeResponse:
        """Make a token of each character, after one special token."""
        await self._begin(request, context)
        return tokenizer_service_pb2.TokenizeResponse(
            texts=[
                tokenizer_service_pb2.TokenizedText(
                    ids=[1, *map(ord, text)],
                    tokens=["[CLS]", *text],
                    character_starts=[0, *range(len(text))],
                    character_ends=[0, *range(1, len(text) + 1)],
                    byte_starts=[0, *(len(text[:index].encode()) for index in range(len(text)))],
                    byte_ends=[0, *(len(text[: index + 1].encode()) for index in range(len(text)))],
                    special=[True] + [False] * len(text),
                    of_prompt=[False] * (len(text) + 1),
                )
                for text in request.texts
            ],
            model="model-0",
        )

    async def CountTokens(  # noqa: N802
        self, request: tokenizer_service_pb2.CountTokensRequest, context: Any
    ) -> tokenizer_service_pb2.CountTokensResponse:
        """Count characters, and one special token."""
        await self._begin(request, context)
        counts = [len(text) + 1 for text in request.texts]
        return tokenizer_service_pb2.CountTokensResponse(
            token_counts=counts, total_tokens=sum(counts), max_tokens=512, model="model-0"
        )

    async def GetServer(  # noqa: N802
        self, request: model_service_pb2.GetServerRequest, context: Any
    ) -> model_service_pb2.GetServerResponse:
        """Describe this server."""
        await self._begin(request, context)
        server = model_service_pb2.Server(
            version="1.2.3", contract_version="1.0", default_model="model-0", limits=limits()
        )
        server.start_time.FromSeconds(1_700_000_000)
        server.uptime.FromMilliseconds(1500)
        return model_service_pb2.GetServerResponse(server=server)

    async def ListModels(  # noqa: N802
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """List `script.model_count` models in pages of `script.page_size`."""
        await self._begin(request, context)
        first = int(request.page_token or 0) if self.script.page_tokens is None else 0
        last = min(first + self.script.page_size, self.script.model_count)
        return model_service_pb2.ListModelsResponse(
            models=[model(f"model-{number}") for number in range(first, last)],
            next_page_token=(
                next(self.script.page_tokens)
                if self.script.page_tokens is not None
                else str(last)
                if last < self.script.model_count
                else ""
            ),
        )

    async def GetModel(  # noqa: N802
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Describe a model of any name."""
        await self._begin(request, context)
        return model_service_pb2.GetModelResponse(model=model(request.model))

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return SERVING for "", NOT_SERVING for "stopping"."""
        await self._begin(request, context)
        statuses = {"": "SERVING", "stopping": "NOT_SERVING"}
        statuses |= dict.fromkeys(self.script.serving, "SERVING")
        status = statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Report `script.watch_status`, and then nothing more."""
        self.script.watched.append(request.service)
        yield health_pb2.HealthCheckResponse(status=self.script.watch_status)
        ended = asyncio.Event()
        context.add_done_callback(lambda _: ended.set())
        await ended.wait()

    async def _begin(self, request: Any, context: Any) -> None:
        self.script.calls.append(request)
        self.script.on_call(context)
        self.script.metadata = list(context.invocation_metadata())
        names = context.auth_context().get("x509_common_name", ())
        self.script.names += [name.decode() for name in names]
        if self.script.hold_calls:
            await asyncio.Event().wait()
        if self.script.refusals:
            await _abort(context, self.script.refusals.popleft())


class _Attempts(grpc.aio.ServerInterceptor):
    """Notes each call when its headers arrive, before gRPC's core measures its message."""

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Note the method, and go on."""
        self._servicer.script.attempts.append(details.method.rpartition("/")[2])
        return await continuation(details)


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    """Make the detail that holds a reason."""
    return error_details_pb2.ErrorInfo(reason=reason, domain="embedgrpc", metadata=metadata)


def _overloaded(script: Script, item: Any) -> pb.StreamEmbedResult | None:
    """Return the refusal of an input, if the script has one left for its text."""
    left = script.overloads.get(getattr(item, "text", ""), 0)
    if not left:
        return None
    script.overloads[item.text] = left - 1
    error = common_pb2.ItemError(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
        reason="ERROR_REASON_OVERLOADED",
        message="the queue is full",
    )
    return pb.StreamEmbedResult(id=item.id, error=error)


async def _fail_as_asked(field: str, texts: Sequence[str], context: Any) -> None:
    """Fail like the first text that asks for it, and name all that do."""
    wrong = [
        error_details_pb2.BadRequest.FieldViolation(
            field=f"{field}[{index}]", reason=reason_of(text)
        )
        for index, text in enumerate(texts)
        if reason_of(text)
    ]
    if wrong:
        wrong[0].description = "as asked"
        error = ERRORS_BY_REASON[wrong[0].reason]
        details = (info(error.reason), error_details_pb2.BadRequest(field_violations=wrong))
        await _abort(context, Refusal(error.code, "as asked", details))


async def _break_as_planned(script: Script, context: Any) -> None:
    if script.breaks and script.answered_count >= script.breaks[0][0]:
        await _abort(context, script.breaks.popleft()[1])


async def _abort(context: Any, refusal: Refusal) -> None:
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    for detail in refusal.details:
        status.details.add().Pack(detail)
    trailing: list[tuple[str, str | bytes]] = []
    if refusal.details:
        trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    if refusal.pushback_ms is not None:
        trailing.append(("grpc-retry-pushback-ms", refusal.pushback_ms))
    await context.abort(refusal.code, refusal.message, tuple(trailing))


_ADD_SERVICES: list[Callable[[Servicer, Any], None]] = [
    embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server,
    rerank_service_pb2_grpc.add_RerankServiceServicer_to_server,
    classify_service_pb2_grpc.add_ClassifyServiceServicer_to_server,
    model_service_pb2_grpc.add_ModelServiceServicer_to_server,
    tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server,
    health_pb2_grpc.add_HealthServicer_to_server,
]


async def _stop(server: Any) -> None:
    await server.stop(None)
    # gRPC's tasks end after its calls. If one is left, the garbage collector reports it, and a
    # later test finds that on stderr.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def serving(
    address: str = "127.0.0.1:0",
    *,
    max_request_bytes: int = 16 * 2**20,
    max_streams: int = 0,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[tuple[Servicer, str]]:
    """Run a server in a thread with its own loop; yield the servicer and its address."""
    options = [("grpc.max_receive_message_length", max_request_bytes)]
    if max_streams:
        options.append(("grpc.max_concurrent_streams", max_streams))
    servicer = Servicer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server")
    thread.start()

    async def start() -> tuple[Any, int]:
        server = grpc.aio.server(options=options, interceptors=[_Attempts(servicer)])
        for add in _ADD_SERVICES:
            add(servicer, server)
        port = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
        await server.start()
        return server, port

    try:
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            yield servicer, address.removesuffix("0") + str(port) if ":0" in address else address
        finally:
            asyncio.run_coroutine_threadsafe(_stop(server), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
