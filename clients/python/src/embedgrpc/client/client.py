"""The client for threads."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, overload

import grpc
from typing_extensions import Self, Unpack

from embedgrpc.client.attempts import Attempts
from embedgrpc.client.channel import Stubs
from embedgrpc.client.classifications import Classifications
from embedgrpc.client.classify_state import ClassifyState, ClassifyStreamInputs
from embedgrpc.client.client_encode import EncodeMethods
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECONNECT_S
from embedgrpc.client.embed_state import EmbedState, StreamInputs
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.errors import EmbedGrpcError, MessageTooLargeError
from embedgrpc.client.inputs import ClassifyInputs
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import ClassifyOptions, EmbedOptions, RerankOptions, TokenizeOptions
from embedgrpc.client.rerank_state import RerankInputs, RerankState
from embedgrpc.client.result_types import Embeddings, PartialEmbeddings, Ranking
from embedgrpc.client.server_description import Server
from embedgrpc.client.server_status import ModelStatus, ServerStatus
from embedgrpc.client.stream import ClassifyStream, EmbedStream, RerankStream
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


class Client(EncodeMethods):
    """A client that threads may share.

    It connects at its first call: until then you may pickle it, or fork the process.
    """

    @overload  # type: ignore[override] # the result depends on `allow_partial`
    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: Literal[False] = False,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings: ...
    @overload
    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: Literal[True],
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> PartialEmbeddings: ...
    def embed(
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
            return self._run(call, timeout_s)
        return self._run(embed_call(texts, model, **options), timeout_s)

    def embed_stream(
        self,
        inputs: StreamInputs,
        *,
        model: str = "",
        with_spans: bool = False,
        order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[EmbedOptions],
    ) -> EmbedStream:
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
        return EmbedStream(state, self._stream_calls())

    def rerank(
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
        return self._run(call, timeout_s)

    def rerank_stream(
        self,
        inputs: RerankInputs,
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[RerankOptions],
    ) -> RerankStream:
        state = RerankState(
            inputs,
            model=model,
            allow_partial=allow_partial,
            timeout_s=self._deadline_s(timeout_s),
            reconnect_s=reconnect_s,
            request_limit=self._request_limit,
            **options,
        )
        return RerankStream(state, self._stream_calls())

    def classify(
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
        return self._run(call, timeout_s)

    def classify_stream(
        self,
        inputs: ClassifyStreamInputs,
        *,
        model: str = "",
        with_ids: bool = False,
        result_order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[ClassifyOptions],
    ) -> ClassifyStream:
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
        return ClassifyStream(state, self._stream_calls())

    def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> list[TokenizedText]:
        return self._run(tokenize_call(texts, model, **options), timeout_s)

    def count_tokens(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> TokenCounts:
        return self._run(count_tokens_call(texts, model, **options), timeout_s)

    def list_models(
        self, task: Task | None = None, *, timeout_s: float | None = None
    ) -> list[Model]:
        pages = ModelPages(task)
        while (call := pages.next_call()) is not None:
            self._run(call, timeout_s)
        return pages.models

    def get_model(self, name: str, *, timeout_s: float | None = None) -> Model:
        return self._run(get_model_call(name), timeout_s)

    def get_server(self, *, timeout_s: float | None = None) -> Server:
        return self._run(get_server_call(), timeout_s)

    def get_status(self, *, timeout_s: float | None = None) -> ServerStatus:
        return self._run(get_status_call(), timeout_s)

    def load_model(
        self,
        model: str = "",
        *,
        source: str = "",
        aliases: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> ModelStatus:
        return self._run(load_model_call(model, source, aliases, settings), timeout_s)

    def unload_model(self, model: str, *, timeout_s: float | None = None) -> None:
        self._run(unload_model_call(model), timeout_s)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        try:
            return self._run(health_call(service), timeout_s)
        except EmbedGrpcError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return HealthStatus.SERVICE_UNKNOWN
            raise

    def close(self) -> None:
        for channel in self._release():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _discard(self, channel: Any) -> None:
        channel.close()

    def _start_stream(
        self, method: Callable[[Stubs], Any], requests: Iterator[Any], attempts: Attempts
    ) -> tuple[Any, Slot]:
        slot = self._acquire_slot(attempts)
        try:
            metadata = self._call_metadata()
            call = method(self._open(grpc, slot))(requests, metadata=metadata)
            if not call.add_callback(lambda: self._concurrency.release(slot)):
                self._concurrency.release(slot)  # the call has ended already
        except BaseException as error:
            self._concurrency.release(slot)
            if isinstance(error, ValueError):
                self._check_open()  # gRPC raises ValueError when the channel is closed
            raise
        return call, slot

    def _run(self, call: UnaryCall[ResultT], timeout_s: float | None) -> ResultT:
        attempts = self._new_attempts(self._deadline_s(timeout_s))
        while call.request is not None:
            try:
                self._request_limit.check(call.request, call.texts)
            except MessageTooLargeError as error:
                raise call.explained(error) from None
            slot = self._acquire_slot(attempts)
            try:
                metadata = self._call_metadata()
                method = call.method(self._open(grpc, slot))
                response = method(call.request, timeout=attempts.left_s(), metadata=metadata)
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(error, slot)
                if delay_s is None:
                    failure = self._error_of(error, call.request, call.texts)
                    smaller = call.smaller(failure)
                    if smaller is None:
                        raise call.explained(failure) from error
                    call, delay_s = smaller, 0
            except ValueError:
                self._check_open()  # gRPC raises ValueError when the channel is closed
                raise
            else:
                attempts.succeed()
                return call.decode(response)
            finally:
                self._concurrency.release(slot)
            time.sleep(delay_s)
        return call.decode(None)

    def _acquire_slot(self, attempts: Attempts) -> Slot:
        """Wait for a slot among the calls in flight."""
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
