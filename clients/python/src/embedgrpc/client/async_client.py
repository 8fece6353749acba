"""The client for asyncio."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, overload

import grpc
from typing_extensions import Self, Unpack

from embedgrpc.client.async_client_encode import AsyncEncodeMethods
from embedgrpc.client.async_stream import AsyncClassifyStream, AsyncEmbedStream, AsyncRerankStream
from embedgrpc.client.attempts import Attempts
from embedgrpc.client.cancellation import closed_error, is_task_cancelled
from embedgrpc.client.channel import Stubs
from embedgrpc.client.classifications import Classifications
from embedgrpc.client.classify_state import AsyncClassifyStreamInputs, ClassifyState
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECONNECT_S
from embedgrpc.client.embed_state import AsyncStreamInputs, EmbedState
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.errors import EmbedGrpcError, MessageTooLargeError
from embedgrpc.client.inputs import ClassifyInputs
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import ClassifyOptions, EmbedOptions, RerankOptions, TokenizeOptions
from embedgrpc.client.rerank_state import AsyncRerankInputs, RerankState
from embedgrpc.client.result_types import Embeddings, PartialEmbeddings, Ranking
from embedgrpc.client.server_description import Server
from embedgrpc.client.server_status import ModelStatus, ServerStatus
from embedgrpc.client.tokens import TokenCounts, TokenizedText
from embedgrpc.client.unary_calls import (
    HealthStatus,
    ModelPages,
    UnaryCall,
    classify_call,
    count_tokens_call,
    embed_call,
    get_model_call,
    get_server_call,
    get_status_call,
    health_call,
    load_model_call,
    partial_embed_call,
    rerank_call,
    tokenize_call,
    unload_model_call,
)

ResultT = TypeVar("ResultT")


class AsyncClient(AsyncEncodeMethods):
    """A client for one event loop, that of its first call.

    It connects at its first call: until then you may pickle it, or fork the process.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    @overload  # type: ignore[override] # the result depends on `allow_partial`
    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: Literal[False] = False,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings: ...
    @overload
    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: Literal[True],
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> PartialEmbeddings: ...
    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings | PartialEmbeddings:
        if allow_partial:
            call = partial_embed_call(texts, model, self._request_limit, **options)
            return await self._run(call, timeout_s)
        return await self._run(embed_call(texts, model, **options), timeout_s)

    def embed_stream(
        self,
        inputs: AsyncStreamInputs,
        *,
        model: str = "",
        with_spans: bool = False,
        order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[EmbedOptions],
    ) -> AsyncEmbedStream:
        state = EmbedState(
            inputs,
            model=model,
            with_spans=with_spans,
            order=order,
            batch_size=batch_size,
            timeout_s=self._deadline_s(timeout_s),
            reconnect_s=reconnect_s,
            request_limit=self._request_limit,
            **options,
        )
        return AsyncEmbedStream(state, self._stream_calls())

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking:
        call = rerank_call(
            query, documents, model, self._request_limit, allow_partial=allow_partial, **options
        )
        return await self._run(call, timeout_s)

    def rerank_stream(
        self,
        inputs: AsyncRerankInputs,
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[RerankOptions],
    ) -> AsyncRerankStream:
        state = RerankState(
            inputs,
            model=model,
            allow_partial=allow_partial,
            timeout_s=self._deadline_s(timeout_s),
            reconnect_s=reconnect_s,
            request_limit=self._request_limit,
            **options,
        )
        return AsyncRerankStream(state, self._stream_calls())

    async def classify(
        self,
        inputs: ClassifyInputs,
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Classifications:
        call = classify_call(
            inputs, model, self._request_limit, allow_partial=allow_partial, **options
        )
        return await self._run(call, timeout_s)

    def classify_stream(
        self,
        inputs: AsyncClassifyStreamInputs,
        *,
        model: str = "",
        with_ids: bool = False,
        result_order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncClassifyStream:
        state = ClassifyState(
            inputs,
            model=model,
            with_ids=with_ids,
            result_order=result_order,
            batch_size=batch_size,
            timeout_s=self._deadline_s(timeout_s),
            reconnect_s=reconnect_s,
            request_limit=self._request_limit,
            **options,
        )
        return AsyncClassifyStream(state, self._stream_calls())

    async def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> list[TokenizedText]:
        return await self._run(tokenize_call(texts, model, **options), timeout_s)

    async def count_tokens(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> TokenCounts:
        return await self._run(count_tokens_call(texts, model, **options), timeout_s)

    async def list_models(
        self, task: Task | None = None, *, timeout_s: float | None = None
    ) -> list[Model]:
        pages = ModelPages(task)
        while (call := pages.next_call()) is not None:
            await self._run(call, timeout_s)
        return pages.models

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> Model:
        return await self._run(get_model_call(name), timeout_s)

    async def get_server(self, *, timeout_s: float | None = None) -> Server:
        return await self._run(get_server_call(), timeout_s)

    async def get_status(self, *, timeout_s: float | None = None) -> ServerStatus:
        return await self._run(get_status_call(), timeout_s)

    async def load_model(
        self,
        model: str = "",
        *,
        source: str = "",
        aliases: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> ModelStatus:
        return await self._run(load_model_call(model, source, aliases, settings), timeout_s)

    async def unload_model(self, model: str, *, timeout_s: float | None = None) -> None:
        await self._run(unload_model_call(model), timeout_s)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        try:
            return await self._run(health_call(service), timeout_s)
        except EmbedGrpcError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return HealthStatus.SERVICE_UNKNOWN
            raise

    async def close(self) -> None:
        closing = [channel.close() for channel in self._release()]
        await asyncio.gather(*closing, *self._discarding)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _discard(self, channel: Any) -> None:
        task = asyncio.get_running_loop().create_task(channel.close())
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    async def _start_stream(
        self, method: Callable[[Stubs], Any], attempts: Attempts
    ) -> tuple[Any, Slot]:
        self._check_loop()
        slot = await self._acquire_slot(attempts)
        try:
            metadata = (*self._metadata, *await self._call_credentials.wait_for_metadata())
            call = method(self._open(grpc.aio, slot))(metadata=metadata)
            call.add_done_callback(lambda _: self._concurrency.release(slot))
        except BaseException as error:
            self._concurrency.release(slot)
            if isinstance(error, grpc.aio.UsageError):
                self._check_open()  # gRPC raises UsageError when the channel is closed
            raise
        return call, slot

    async def _run(self, call: UnaryCall[ResultT], timeout_s: float | None) -> ResultT:
        self._check_loop()
        attempts = self._new_attempts(self._deadline_s(timeout_s))
        while call.request is not None:
            try:
                self._request_limit.check(call.request, call.texts)
            except MessageTooLargeError as error:
                raise call.explained(error) from None
            slot = await self._acquire_slot(attempts)
            try:
                metadata = (*self._metadata, *await self._call_credentials.wait_for_metadata())
                method = call.method(self._open(grpc.aio, slot))
                response = await method(call.request, timeout=attempts.left_s(), metadata=metadata)
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(error, slot)
                if delay_s is None:
                    failure = self._error_of(error, call.request, call.texts)
                    smaller = call.smaller(failure)
                    if smaller is None:
                        raise call.explained(failure) from error
                    call, delay_s = smaller, 0
            except grpc.aio.UsageError:
                self._check_open()  # gRPC raises UsageError when the channel is closed
                raise
            except asyncio.CancelledError as error:
                if not self._closed or is_task_cancelled():
                    raise
                raise closed_error() from error
            else:
                attempts.succeed()
                return call.decode(response)
            finally:
                self._concurrency.release(slot)
            await asyncio.sleep(delay_s)
        return call.decode(None)

    async def _acquire_slot(self, attempts: Attempts) -> Slot:
        """Wait for a slot among the calls in flight."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            # Runs in any thread: a stream releases its slot where it is garbage collected.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, granted)

        slot = self._concurrency.acquire(wake)
        try:
            while not slot.granted:
                await asyncio.wait({granted}, timeout=attempts.left_s())
            self._check_open()
        except BaseException:
            self._concurrency.release(slot)
            raise
        return slot

    def _check_loop(self) -> None:
        """Raise RuntimeError on another event loop than that of the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop; make one for each loop")


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
