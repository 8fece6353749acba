"""The client for threads."""

import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from embedgrpc.client.channel import Attempts, ChannelOwner
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.embed_stream import EmbedStream
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.result_types import Embeddings, Ranking
from embedgrpc.client.stream_state import BATCH_SIZE, StreamInputs, StreamState
from embedgrpc.client.unary_calls import (
    HealthStatus,
    ModelPages,
    UnaryCall,
    embed_call,
    get_model_call,
    health_call,
    rerank_call,
)
from embedgrpc.v1 import embedding_service_pb2

ResultT = TypeVar("ResultT")


class Client(ChannelOwner):
    """Embeds and reranks; threads may share one.

    Nothing is connected before the first call; until then a client may be pickled or forked.

    Args:
        target: HOST:PORT or unix:PATH.
        timeout_s: Deadline of a call, and the longest wait for the next answer of a stream,
            unless a call sets its own; in seconds.
        credentials: For TLS; None connects in plain text. Credentials cannot be pickled.
        metadata: Sent with every call.
        health_check: Whether to spread calls over all addresses of the target that report
            SERVING, instead of using the first one that connects.
        max_request_bytes: The most bytes of a request, `max_request_bytes` of the server. A text
            that fits into none fails alone, before it is sent.
        max_concurrent_calls: The most calls at once, streams included; further ones wait for
            their turn, in the order in which they were made. More than the server, or a proxy
            before it, takes on one connection are not lost, but slower.

    Raises:
        ValueError: The target is empty, the timeout is not positive and finite, or a limit is
            out of its range.
    """

    def embed(
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
        return self._run(embed_call(texts, model, **options), timeout_s)

    def embed_stream(
        self,
        inputs: StreamInputs,
        *,
        model: str = "",
        order: ResultOrder = "input",
        batch_size: int = BATCH_SIZE,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbedStream:
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
        state: StreamState[StreamInputs] = StreamState(
            inputs,
            model=model,
            order=order,
            batch_size=batch_size,
            timeout_s=self._deadline_s(timeout_s),
            request_limit=self._request_limit,
            **options,
        )
        return EmbedStream(self, state)

    def rerank(
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
        return self._run(rerank_call(query, documents, model, **options), timeout_s)

    def list_models(
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
            self._run(call, timeout_s)
        return pages.models

    def get_model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Describes one model.

        Args:
            name: Id or alias of the model.
            timeout_s: Deadline in seconds; None for the client's.

        Returns:
            The model.

        Raises:
            EmbedGrpcError: The call failed.
        """
        return self._run(get_model_call(name), timeout_s)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
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
            return self._run(health_call(service), timeout_s)
        except EmbedGrpcError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return HealthStatus.SERVICE_UNKNOWN
            raise

    def close(self) -> None:
        """Closes the channel and ends its calls; later and waiting ones raise RuntimeError."""
        channel = self._release()
        if channel is not None:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_stream(
        self, requests: Iterator[embedding_service_pb2.StreamEmbedRequest], attempts: Attempts
    ) -> tuple[Any, Slot]:
        """Starts a call of StreamEmbed; for `EmbedStream`."""
        stubs = self._open(grpc)
        slot = self._acquire_slot(attempts)
        try:
            call = stubs.embedding.StreamEmbed(requests, metadata=self._call_metadata)
            if not call.add_callback(lambda: self._concurrency.release(slot)):
                self._concurrency.release(slot)  # it is over already
        except BaseException as error:
            self._concurrency.release(slot)
            if isinstance(error, ValueError):
                self._check_open()  # this is what gRPC says of a closed channel
            raise
        return call, slot

    def _run(self, call: UnaryCall[ResultT], timeout_s: float | None) -> ResultT:
        method = call.method(self._open(grpc))
        attempts = self.attempts(self._deadline_s(timeout_s))
        self._request_limit.check(call.request, call.texts)
        while True:
            slot = self._acquire_slot(attempts)
            try:
                response = method(
                    call.request, timeout=attempts.left_s(), metadata=self._call_metadata
                )
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(error, slot)
                if delay_s is None:
                    raise self.error_of(error) from error
            except ValueError:
                self._check_open()  # this is what gRPC says of a closed channel
                raise
            else:
                return call.read(response)
            finally:
                self._concurrency.release(slot)
            time.sleep(delay_s)

    def _acquire_slot(self, attempts: Attempts) -> Slot:
        """Waits for a place among the calls in flight."""
        granted = threading.Event()
        slot = self._concurrency.acquire(granted.set)
        try:
            while not slot.granted:
                granted.wait(attempts.left_s())
            self._check_open()
        except BaseException:
            self._concurrency.release(slot)
            raise
        return slot
