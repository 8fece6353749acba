"""The streams of results for threads.

Three threads share an `_Exchange`: gRPC's thread reads the requests from it, a reader thread adds
the responses, and the caller's thread takes the results. None of them refers to the
`ResultStream`, so a stream that the caller drops is garbage collected, and that ends the call.

A stream whose call ends early goes on with another call. gRPC's thread of the former one may still
wait for an input of the caller then: what it gets is left to the next call.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic

import grpc
from typing_extensions import Self

from embedgrpc.client.attempts import Attempts, Reconnects
from embedgrpc.client.channel import StreamCalls
from embedgrpc.client.classifications import ClassifyResult, ClassifyStreamReady
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.result_types import (
    RerankResult,
    RerankStreamReady,
    StreamReady,
    StreamResult,
)
from embedgrpc.client.status_errors import is_resumable
from embedgrpc.client.stream_state import ReadyT, ResultT, StreamState

_logger = logging.getLogger(__name__)

_RESPONSES_AHEAD: Final = 2
_END: Final = object()


class ResultStream(Iterator[ResultT], Generic[ResultT, ReadyT]):
    """The results of a stream, one by one. The call starts when you ask for the first.

    To end the call early, use `close()`, leave a `with` block or drop the stream. Only one thread
    may iterate. An exception of the inputs is raised after the results of the inputs before it.

    When the connection breaks or the server stops, the stream goes on with another call for
    `reconnect_s` seconds, and sends again what has no result: every input has one result. When it
    fails for good, `remaining()` returns what is left.
    """

    def __init__(
        self,
        state: StreamState[ResultT, ReadyT],
        calls: StreamCalls,
    ) -> None:
        self._state = state
        self._calls = calls
        self._attempts: Attempts | None = None
        self._reconnects = Reconnects(state.reconnect_s)
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

    @property
    def reconnect_count(self) -> int:
        """How often the stream has gone on with another call."""
        return max(self._state.accepted_count - 1, 0)

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

    def remaining(self) -> Iterator[Any]:
        """End the call; return the inputs whose results you did not get, in order.

        Those that were read come first, then those of your iterable that were not. Each is a tuple
        that starts with the id: (id, text) for embeddings and (id, query, documents) for rankings.
        Another stream takes them as they are; for classifications, set `with_ids`.
        """
        self.close()
        return self._exchange.remaining()

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
        try:
            if self._call is None:
                self._begin()
            results = self._exchange.next_results()
        except (grpc.RpcError, EmbedGrpcError) as error:
            return self._go_on_after(error)
        if results is None:
            if self._state.has_ended():
                return self._finish(None)
            return self._go_on_after(self._state.early_end_error())
        if results:
            self._reconnects.succeed()
        self._results.extend(results)
        return True

    def _go_on_after(self, ended_by: grpc.RpcError | EmbedGrpcError) -> bool:
        """Prepare another call and return True, or raise the error that the call ended with."""
        if isinstance(ended_by, EmbedGrpcError):
            return self._prepare_reconnect(ended_by) or self._finish(ended_by)
        if self._prepare_retry(ended_by):
            return True
        failure = self._calls.error_of(ended_by)
        return self._prepare_reconnect(failure) or self._finish(failure, ended_by)

    def _finish(self, failure: EmbedGrpcError | None, cause: Exception | None = None) -> bool:
        """Return False after the last result; raise if there is an input without one."""
        self.close()
        outcome = self._state.outcome(failure)
        if outcome is not None:
            raise outcome from cause or self._state.input_error
        return False

    def _begin(self) -> None:
        if self._attempts is None:
            self._attempts = self._calls.new_attempts(self._state.timeout_s)
        requests = self._exchange.requests()
        self._call, self._slot = self._calls.start(self._state.method, requests, self._attempts)
        self._reader = threading.Thread(
            target=self._exchange.read, args=(self._call,), name="embedgrpc-stream", daemon=True
        )
        self._reader.start()

    def _prepare_retry(self, failure: grpc.RpcError) -> bool:
        """Prepare another call if the server refused this one; return whether it did."""
        if self._state.accepted or self._attempts is None or self._slot is None:
            return False
        delay_s = self._attempts.delay_s(failure, self._slot)
        if delay_s is None:
            return False
        self._restart(delay_s)
        return True

    def _prepare_reconnect(self, failure: EmbedGrpcError) -> bool:
        """Prepare another call if one may go on with the stream; return whether it may."""
        begun = self._state.ready is not None
        if self._call is None or self._calls.is_closed() or not is_resumable(failure, begun=begun):
            return False
        delay_s = self._reconnects.delay_s(failure)
        if delay_s is None:
            return False
        _logger.info(
            "stream goes on with another call",
            extra={"reason": failure.reason or failure.code.name, "delay_s": round(delay_s, 3)},
        )
        self._attempts = None
        self._restart(delay_s)
        return True

    def _restart(self, delay_s: float) -> None:
        self._call.cancel()
        if self._reader is not None:
            self._reader.join()
        self._exchange.restart()
        self._call = None
        time.sleep(delay_s)

    def _cancel(self) -> None:
        if not self._finished:
            self._finished = True
            self._exchange.stop(len(self._results))
        self._results.clear()
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
        self._restart_count = 0
        self._inputs: Iterator[Any] | None = None
        self._reading = False
        # What a thread of a former call has read: an input, `_END`, or an exception.
        self._read_late: deque[Any] = deque()

    def requests(self) -> Iterator[Any]:
        """Yield the requests of one call. Runs in a thread of gRPC's, which ends with it."""
        with self._changed:
            number = self._restart_count
        yield self._state.setup
        while True:
            message = self._wait_for_room(number)
            if message is _END:
                # The inputs have not ended: another call may read them.
                return
            if message is None:
                item = self._read_input()
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()
                    if number != self._restart_count:
                        self._read_late.append(item)
                        return
                    message = self._take(item)
                    if self._state.inputs_ended:
                        break
            if message is not None:
                yield message
        if message is not None:
            yield message

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
        """Wait for the next results; return None at the end of the call.

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

    def restart(self) -> None:
        """Begin another call. The reader of the former one has ended."""
        with self._changed:
            self._restart_count += 1
            self._responses.clear()
            self._ended, self._failure = False, None
            self._state.restart()
            self._changed.notify_all()

    def stop(self, undelivered_count: int = 0) -> None:
        """Make the other threads end.

        Args:
            undelivered_count: How many of the last results the caller did not get.
        """
        with self._changed:
            self._stopped = True
            self._state.note_undelivered(undelivered_count)
            self._changed.notify_all()

    def remaining(self) -> Iterator[Any]:
        """Yield the inputs whose results the caller did not get, after `stop`."""
        with self._changed:
            kept = self._state.remaining()
        yield from kept
        with self._changed:
            # What a thread still reads comes before what is left.
            self._changed.wait_for(lambda: not self._reading)
            kept = self._state.remaining()[len(kept) :]
        yield from kept
        number = 0
        while (item := self._read_late.popleft() if self._read_late else self._next()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield self._state.with_id(item, number)
            number += 1

    def _read_input(self) -> Any:
        """Return the next input; `_END` after the last, an exception where there is one."""
        with self._changed:
            if self._state.inputs_ended:
                return _END
            if self._read_late:
                return self._read_late.popleft()
            self._reading = True
        item: Any
        try:
            item = self._next()
        except Exception as error:  # noqa: BLE001 -- of the caller's inputs, raised in its thread
            item = _Raised(error)
        return item

    def _next(self) -> Any:
        if self._inputs is None:
            self._inputs = iter(self._state.inputs)  # type: ignore[arg-type] # not asynchronous
        return next(self._inputs, _END)

    def _take(self, item: Any) -> Any:
        """Add an input; return the message to send now, None if there is none yet."""
        if self._state.inputs_ended:
            return None
        if item is _END:
            return self._state.end_inputs()
        if isinstance(item, _Raised):
            return self._state.end_inputs(item.error)
        try:
            return self._state.add(item)
        except Exception as error:  # noqa: BLE001 -- of an input, raised in the caller's thread
            return self._state.end_inputs(error)

    def _wait_for_room(self, number: int) -> Any:
        """Wait for room; return the next message, None to read an input, `_END` to stop."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._is_over(number) or self._state.has_room())
                if self._is_over(number):
                    return _END
                message = self._state.next_message()
                if self._state.has_failed():
                    self._changed.notify_all()
                if message is not None or not self._reading:
                    return message
                # Another thread waits for the next input, which this call will send.
                self._changed.wait_for(lambda: self._is_over(number) or not self._reading)

    def _is_over(self, number: int) -> bool:
        return self._stopped or self._ended or number != self._restart_count


@dataclass(frozen=True, slots=True)
class _Raised:
    """What the caller's iterable raised."""

    error: Exception
