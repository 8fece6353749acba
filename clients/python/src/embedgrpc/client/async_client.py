"""The client for asyncio."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from embedgrpc.client.async_embed_stream import AsyncEmbedStream
from embedgrpc.client.cancellation import ended_here_error, is_task_cancelled
from embedgrpc.client.channel import Attempts, ChannelOwner, Stubs
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.result_types import Embeddings, Ranking
from embedgrpc.client.stream_state import BATCH_SIZE, AsyncStreamInputs, StreamState
from embedgrpc.client.unary_calls import (
    HealthStatus,
    ModelPages,
    UnaryCall,
    embed_call,
    get_model_call,
    health_call,
    rerank_call,
)

ResultT = TypeVar("ResultT")


class AsyncClient(ChannelOwner):
    """Embeds and reranks on one event loop, that of the first call.

    It is made as `Client` is, and its methods are the same.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Embeds a batch: all of it, or the call fails.

        Args:
            texts: At least one text, at most `Model.max_inputs`.
            model: Id or alias of the model; "" for the server's default.
            timeout_s: Deadline in seconds; None for the client's.
            options: As `EmbedOptions` describes them.

        Returns:
            The embeddings, in the order of the texts.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of its range.
        """
        return await self._run(embed_call(texts, model, **options), timeout_s)

    def embed_stream(
        self,
        inputs: AsyncStreamInputs,
        *,
        model: str = "",
        order: ResultOrder = "input",
        batch_size: int = BATCH_SIZE,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncEmbedStream:
        """Embeds any number of texts; one that cannot be embedded fails alone.

        Args:
            inputs: Texts, or pairs of an id and a text; taken as the server has room for them,
                so there may be no end of them.
            model: Id or alias of the model; "" for the server's default.
            order: "input", or "completion" for the fastest.
            batch_size: The most inputs in one message. An input waits for the others of its
                message: use 1 where inputs come slowly.
            timeout_s: The longest wait for the next answer, in seconds; None for the client's.
            options: As `EmbedOptions` describes them.

        Returns:
            The results: iterate, and close it when leaving early.

        Raises:
            InputTooLongError: The prompt, or the name of the model, fits into no message.
            TypeError: An option has the wrong type, or the inputs are one str.
            ValueError: An option is out of its range.
        """
        state: StreamState[AsyncStreamInputs] = StreamState(
            inputs,
            model=model,
            order=order,
            batch_size=batch_size,
            timeout_s=self._deadline_s(timeout_s),
            request_limit=self._request_limit,
            **options,
        )
        return AsyncEmbedStream(self, state)

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking:
        """Scores documents against a query: all of them, or the call fails.

        Args:
            query: What the documents are compared with.
            documents: At least one document, at most `Model.max_inputs`.
            model: Id or alias of the model; "" for the server's default.
            timeout_s: Deadline in seconds; None for the client's.
            options: As `RerankOptions` describes them.

        Returns:
            The documents with their scores, best first.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of its range.
        """
        return await self._run(rerank_call(query, documents, model, **options), timeout_s)

    async def list_models(
        self, task: Task | None = None, *, timeout_s: float | None = None
    ) -> list[Model]:
        """Lists the models, by id, of every page.

        Args:
            task: Only models for this task; None for all.
            timeout_s: Deadline of each page in seconds; None for the client's.

        Returns:
            The models.

        Raises:
            EmbedGrpcError: A call failed.
            ValueError: There is no such task.
        """
        pages = ModelPages(task)
        while (call := pages.next_call()) is not None:
            await self._run(call, timeout_s)
        return pages.models

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Describes one model.

        Args:
            name: Id or alias of the model.
            timeout_s: Deadline in seconds; None for the client's.

        Returns:
            The model.

        Raises:
            EmbedGrpcError: The call failed.
        """
        return await self._run(get_model_call(name), timeout_s)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """Asks how a service of the server is.

        Args:
            service: "" for the process, the full name of a service, or SERVICE/MODEL.
            timeout_s: Deadline in seconds; None for the client's.

        Returns:
            The status; SERVICE_UNKNOWN when the server has no such service.

        Raises:
            EmbedGrpcError: The call failed.
        """
        try:
            return await self._run(health_call(service), timeout_s)
        except EmbedGrpcError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return HealthStatus.SERVICE_UNKNOWN
            raise

    async def close(self) -> None:
        """Closes the channel and ends its calls; later and waiting ones raise RuntimeError."""
        channel = self._release()
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start_stream(self, attempts: Attempts) -> tuple[Any, Slot]:
        """Starts a call of StreamEmbed; for `AsyncEmbedStream`."""
        stubs = self._connect()
        slot = await self._acquire_slot(attempts)
        try:
            call = stubs.embedding.StreamEmbed(metadata=self._call_metadata)
            call.add_done_callback(lambda _: self._concurrency.release(slot))
        except BaseException as error:
            self._concurrency.release(slot)
            if isinstance(error, grpc.aio.UsageError):
                self._check_open()  # this is what gRPC says of a closed channel
            raise
        return call, slot

    async def _run(self, call: UnaryCall[ResultT], timeout_s: float | None) -> ResultT:
        method = call.method(self._connect())
        attempts = self.attempts(self._deadline_s(timeout_s))
        self._request_limit.check(call.request, call.texts)
        while True:
            slot = await self._acquire_slot(attempts)
            try:
                response = await method(
                    call.request, timeout=attempts.left_s(), metadata=self._call_metadata
                )
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(error, slot)
                if delay_s is None:
                    raise self.error_of(error) from error
            except grpc.aio.UsageError:
                self._check_open()  # this is what gRPC says of a closed channel
                raise
            except asyncio.CancelledError as error:
                if not self._closed or is_task_cancelled():
                    raise
                raise ended_here_error() from error
            else:
                return call.read(response)
            finally:
                self._concurrency.release(slot)
            await asyncio.sleep(delay_s)

    async def _acquire_slot(self, attempts: Attempts) -> Slot:
        """Waits for a place among the calls in flight."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            # From any thread: a stream that is collected leaves its slot, wherever that happens.
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

    def _connect(self) -> Stubs:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop; make one for each loop")
        return self._open(grpc.aio)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
