"""The streams of results for threads.

Three threads share an `_Exchange`: gRPC's thread reads the requests from it, a reader thread adds
the responses, and the caller's thread takes the results. None of them refers to the
`ResultStream`, so a stream that the caller drops is garbage collected, and that ends the call.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic

import grpc
from typing_extensions import Self

from embedgrpc.client.attempts import Attempts
from embedgrpc.client.channel import Stubs
from embedgrpc.client.classifications import ClassifyResult, ClassifyStreamReady
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.result_types import (
    RerankResult,
    RerankStreamReady,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.stream_state import ReadyT, ResultT, StreamState

_RESPONSES_AHEAD: Final = 2
_END: Final = object()


class ResultStream(Iterator[ResultT], Generic[ResultT, ReadyT]):
    """The results of a stream, one by one. The call starts when you ask for the first.

    To end the call early, use `close()`, leave a `with` block or drop the stream. Only one thread
    may iterate. When the server fails, the error has the `unanswered_ids`. An exception of the
    inputs is raised after the results of the inputs before it.
    """

    def __init__(
        self,
        state: StreamState[ResultT, ReadyT],
        start: Callable[[Callable[[Stubs], Any], Iterator[Any], Attempts], tuple[Any, Slot]],
        new_attempts: Callable[[float], Attempts],
        error_of: Callable[[Any], EmbedGrpcError],
    ) -> None:
        self._state = state
        self._start = start
        self._new_attempts = new_attempts
        self._error_of = error_of
        self._attempts: Attempts | None = None
        self._slot: Slot | None = None
        self._exchange = _Exchange(state)
        self._results: deque[ResultT] = deque()
        self._call: Any = None
        self._reader: threading.Thread | None = None
        self._finished = False

    @property
    def input_tokens(self) -> int:
        """The tokens of all results so far."""
        return self._state.input_tokens

    def ready(self) -> ReadyT:
        """Wait for the server to accept the stream; return its model and limits.

        Raises:
            EmbedGrpcError: The server rejected the stream, or failed.
            RuntimeError: The stream was closed before.
        """
        while self._state.ready is None:
            if not self._receive():
                raise RuntimeError("the stream was closed before it was ready")
        return self._state.ready

    def close(self) -> None:
        """End the call and drop the results that are left. Safe to repeat."""
        self._cancel()
        if self._reader is not None:
            self._reader.join()

    def __next__(self) -> ResultT:
        while not self._results:
            if not self._receive():
                raise StopIteration
        return self._results.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._cancel()

    def _receive(self) -> bool:
        """Wait for the next results; return False at the end of the stream."""
        if self._finished:
            return False
        if self._call is None:
            self._begin()
        failure: EmbedGrpcError | None = None
        cause: Exception | None = self._state.input_error
        try:
            results = self._exchange.next_results()
        except grpc.RpcError as error:
            if self._prepare_retry(error):
                return True
            failure, cause = self._error_of(error), error
        except EmbedGrpcError as error:
            failure = error
        else:
            if results is not None:
                self._results.extend(results)
                return True
        self.close()
        outcome = self._state.outcome(failure)
        if outcome is not None:
            raise outcome from cause
        return False

    def _begin(self) -> None:
        if self._attempts is None:
            self._attempts = self._new_attempts(self._state.timeout_s)
        requests = self._exchange.requests()
        self._call, self._slot = self._start(self._state.method, requests, self._attempts)
        self._reader = threading.Thread(
            target=self._exchange.read, args=(self._call,), name="embedgrpc-stream", daemon=True
        )
        self._reader.start()

    def _prepare_retry(self, failure: grpc.RpcError) -> bool:
        """Prepare another call if the server refused this one; return whether it did."""
        if self._state.ready is not None or self._attempts is None or self._slot is None:
            return False
        delay_s = self._attempts.delay_s(failure, self._slot)
        if delay_s is None:
            return False
        self._exchange.stop()
        self._exchange = _Exchange(self._state)
        self._call = None
        time.sleep(delay_s)
        return True

    def _cancel(self) -> None:
        self._finished = True
        self._results.clear()
        self._exchange.stop()
        if self._call is not None:
            self._call.cancel()


class EmbedStream(ResultStream[StreamResult, StreamReady]):
    """A stream of embeddings."""


class RerankStream(ResultStream[RerankResult, RerankStreamReady]):
    """A stream of rankings."""


class ClassifyStream(ResultStream[ClassifyResult, ClassifyStreamReady]):
    """A stream of classifications."""


class _Exchange(Generic[ResultT, ReadyT]):
    """The queue between the threads of one stream. Its condition guards the state."""

    def __init__(self, state: StreamState[ResultT, ReadyT]) -> None:
        self._state = state
        self._changed = threading.Condition()
        self._responses: deque[Any] = deque()
        self._ended = False  # by the server
        self._failure: grpc.RpcError | None = None
        self._stopped = False  # by the caller, or at the end of the stream

    def requests(self) -> Iterator[Any]:
        """Yield the requests. Runs in a thread of gRPC's, which ends with it."""
        yield self._state.setup
        failure: Exception | None = None
        inputs: Iterator[Any] | None = None
        try:
            while True:
                message = self._wait_for_room()
                if message is _END:
                    # The inputs have not ended: a retry may read them.
                    return
                if message is None:
                    if inputs is None:
                        inputs = iter(self._state.inputs)  # type: ignore[arg-type] # not asynchronous
                    item = next(inputs, _END)
                    if item is _END:
                        break
                    with self._changed:
                        message = self._state.add(item)
                        if self._state.has_failed():
                            self._changed.notify_all()
                if message is not None:
                    yield message
        except Exception as error:  # noqa: BLE001 -- of the caller's inputs, raised in its thread
            failure = error
        with self._changed:
            last_message = self._state.end_inputs(failure)
        if last_message is not None:
            yield last_message

    def read(self, call: Any) -> None:
        """Read the responses, a few ahead of the caller. Runs in its own thread."""
        try:
            for response in call:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stopped or len(self._responses) < _RESPONSES_AHEAD
                    )
                    self._responses.append(response)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def next_results(self) -> list[ResultT] | None:
        """Wait for the next results; return None at the end of the stream.

        Raises:
            grpc.RpcError: The call failed.
            EmbedGrpcError: The server is overdue, or its response breaks the contract.
        """
        with self._changed:
            self._state.begin_wait()
            while not (self._responses or self._ended or self._state.has_failed()):
                patience_s = self._state.patience_s()
                if patience_s <= 0:
                    raise self._state.overdue_error()
                self._changed.wait(patience_s)
            if self._responses:
                results = self._state.receive(self._responses.popleft())
                self._changed.notify_all()
                return results
            if failed := self._state.take_failed():
                self._changed.notify_all()
                return failed
            if self._failure is not None:
                raise self._failure
            return None

    def stop(self) -> None:
        """Make the other threads end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _wait_for_room(self) -> Any:
        """Wait for room; return the next message, None to read an input, `_END` to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ended or self._state.has_room())
            return _END if self._stopped or self._ended else self._state.next_message()
