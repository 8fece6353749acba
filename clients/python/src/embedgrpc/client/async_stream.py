"""The streams of results for asyncio.

One task writes the requests; the caller's task reads the responses. The writer does not refer to
the `AsyncResultStream`, so a stream that the caller drops is garbage collected, and that ends the
call.

A stream whose call ends early goes on with another call, and another writer. An asynchronous input
that the former writer still waited for is left to the next.
"""

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterator,
)
from contextlib import aclosing, suppress
from typing import Any, Final, Generic

import grpc
from typing_extensions import Self

from embedgrpc.client.attempts import Attempts, Reconnects
from embedgrpc.client.cancellation import closed_error
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
from embedgrpc.client.status_errors import is_resumable, is_status_lost
from embedgrpc.client.stream_state import ReadyT, ResultT, StreamState

_logger = logging.getLogger(__name__)

_END: Final = object()


class AsyncResultStream(AsyncIterator[ResultT], Generic[ResultT, ReadyT]):
    """The results of a stream, one by one. The call starts when you ask for the first.

    To end the call early, use `aclose()`, leave an `async with` block or drop the stream. Only
    one task may iterate. An exception of the inputs is raised after the results of the inputs
    before it. A plain iterable runs on the event loop: if it blocks, give an asynchronous one.

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
        self._inputs = _Inputs(state.inputs)
        self._slot: Slot | None = None
        self._room = asyncio.Event()
        self._failures = _Bell()
        self._results: deque[ResultT] = deque()
        self._call: Any = None
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._finished = False

    @property
    def input_tokens(self) -> int:
        """The tokens of all results so far."""
        return self._state.input_tokens

    @property
    def reconnect_count(self) -> int:
        """How often the stream has gone on with another call."""
        return max(self._state.accepted_count - 1, 0)

    async def ready(self) -> ReadyT:
        """Wait for the server to accept the stream; return its model and limits.

        Raises:
            EmbedGrpcError: The server rejected the stream, or failed.
            RuntimeError: The stream was closed before.
        """
        while self._state.ready is None:
            if not await self._receive():
                raise RuntimeError("the stream was closed before it was ready")
        return self._state.ready

    async def remaining(self) -> AsyncIterator[Any]:
        """End the call; yield the inputs whose results you did not get, in order.

        Those that were read come first, then those of your iterable that were not. Each is a tuple
        that starts with the id: (id, text) for embeddings and (id, query, documents) for rankings.
        Another stream takes them as they are; for classifications, set `with_ids`. If the inputs
        are asynchronous, ask before `aclose()`, which cancels the wait for the next.
        """
        await self._end()
        for item in self._state.remaining():
            yield item
        number = 0
        while (item := await self._inputs.next()) is not _END:
            yield self._state.with_id(item, number)
            number += 1

    async def aclose(self) -> None:
        """End the call and drop the results that are left. Safe to repeat."""
        await self._end()
        await self._inputs.cancel()

    async def __anext__(self) -> ResultT:
        while not self._results:
            if not await self._receive():
                raise StopAsyncIteration
        return self._results.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._writing is not None and not self._writing.get_loop().is_closed():
            self._cancel()
            self._inputs.stop()

    async def _receive(self) -> bool:
        """Wait for the next results; return False at the end of the stream."""
        if self._finished:
            return False
        try:
            if self._call is None:
                await self._begin()
            response = await self._read()
            results = (
                self._state.take_failed()
                if response is None or response is grpc.aio.EOF
                else self._state.receive(response)
            )
        except (grpc.RpcError, EmbedGrpcError) as error:
            return await self._go_on_after(error)
        except Exception:
            await self._end()  # otherwise a call that could not start keeps its slot
            raise
        if response is grpc.aio.EOF and not results:
            if self._state.has_ended():
                return await self._finish(None)
            return await self._go_on_after(self._state.early_end_error())
        if results:
            self._reconnects.succeed()
        self._results.extend(results)
        self._room.set()
        return True

    async def _go_on_after(self, ended_by: grpc.RpcError | EmbedGrpcError) -> bool:
        """Prepare another call and return True, or raise the error that the call ended with."""
        if isinstance(ended_by, EmbedGrpcError):
            return await self._prepare_reconnect(ended_by) or await self._finish(ended_by)
        if await self._prepare_retry(ended_by):
            return True
        failure = self._calls.error_of(ended_by)
        return await self._prepare_reconnect(failure) or await self._finish(failure, ended_by)

    async def _finish(self, failure: EmbedGrpcError | None, cause: Exception | None = None) -> bool:
        """Return False after the last result; raise if there is an input without one."""
        await self._end()
        self._inputs.leave_last_to(self._state)
        outcome = self._state.outcome(failure)
        if outcome is not None:
            raise outcome from cause or self._state.input_error
        return False

    async def _begin(self) -> None:
        if self._attempts is None:
            self._attempts = self._calls.new_attempts(self._state.timeout_s)
        self._call, self._slot = await self._calls.start(self._state.method, self._attempts)
        self._writing = asyncio.create_task(
            _write(self._call, self._state, self._inputs, self._room, self._failures)
        )

    async def _prepare_retry(self, failure: grpc.RpcError) -> bool:
        """Prepare another call if the server refused this one; return whether it did.

        Also if gRPC lost the status: no input was read yet, and the next call may show it.
        """
        if self._state.accepted or self._attempts is None or self._slot is None:
            return False
        delay_s = (
            self._attempts.next_delay_s()
            if is_status_lost(failure)
            else self._attempts.delay_s(failure, self._slot)
        )
        if delay_s is None or self._writing is None:
            return False
        await self._restart(delay_s)
        return True

    async def _prepare_reconnect(self, failure: EmbedGrpcError) -> bool:
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
        await self._restart(delay_s)
        return True

    async def _restart(self, delay_s: float) -> None:
        await self._end_call()
        self._call = self._writing = None
        self._state.restart()
        await asyncio.sleep(delay_s)

    async def _read(self) -> Any:
        """Wait for the next response; return None when an input fails without being sent.

        Cancelling the wait loses no response.
        """
        self._state.begin_wait()
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        while not self._reading.done():
            patience_s = self._state.patience_s()
            if patience_s <= 0:
                raise self._state.overdue_error()
            if self._state.has_failed():
                return None
            await asyncio.wait(
                {self._reading, self._failures.next()},
                timeout=patience_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        reading, self._reading = self._reading, None
        if reading.cancelled():
            raise closed_error()  # the call was cancelled; a cancelled task stops at the wait above
        return reading.result()

    async def _end(self) -> None:
        """End the call, and keep the inputs that are left."""
        self._cancel()
        await self._end_call()

    async def _end_call(self) -> None:
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        if self._call is not None:
            self._call.cancel()
        if self._writing is not None:
            self._writing.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reading = None

    def _cancel(self) -> None:
        if not self._finished:
            self._finished = True
            self._state.note_undelivered(len(self._results))
        self._results.clear()
        if self._writing is not None:
            self._writing.cancel()
            self._call.cancel()


class AsyncEmbedStream(AsyncResultStream[StreamResult, StreamReady]):
    """A stream of embeddings."""


class AsyncRerankStream(AsyncResultStream[RerankResult, RerankStreamReady]):
    """A stream of rankings."""


class AsyncClassifyStream(AsyncResultStream[ClassifyResult, ClassifyStreamReady]):
    """A stream of classifications."""


async def _write(
    call: Any,
    state: StreamState[Any, Any],
    inputs: "_Inputs",
    room: asyncio.Event,
    failures: "_Bell",
) -> None:
    try:
        await call.write(state.setup)
        async with aclosing(_messages(state, inputs, room, failures)) as messages:
            async for message in messages:
                await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return  # the call has ended: reading from it raises the reason


async def _messages(
    state: StreamState[Any, Any], inputs: "_Inputs", room: asyncio.Event, failures: "_Bell"
) -> AsyncGenerator[Any]:
    is_last = False
    while not is_last:
        while not state.has_room():
            room.clear()
            await room.wait()
        message = state.next_message()
        if message is None:
            if not state.inputs_ended:
                message = await _next_message(state, inputs)
            is_last = state.inputs_ended
        if state.has_failed():
            failures.ring()
        if message is not None:
            yield message


async def _next_message(state: StreamState[Any, Any], inputs: "_Inputs") -> Any:
    """Read an input; return the message to send now, None if there is none yet."""
    try:
        item = await inputs.next()
        return state.end_inputs() if item is _END else state.add(item)
    except Exception as error:  # noqa: BLE001 -- of the caller's inputs, raised where it iterates
        return state.end_inputs(error)


class _Inputs:
    """The caller's inputs, one by one. Cancelling the wait for one loses none."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs
        self._iterator: AsyncIterator[Any] | Iterator[Any] | None = None
        self._reading: asyncio.Task[Any] | None = None

    async def next(self) -> Any:
        """Return the next input; `_END` after the last."""
        if self._iterator is None:
            is_async = isinstance(self._inputs, AsyncIterable)
            self._iterator = aiter(self._inputs) if is_async else iter(self._inputs)
        if not isinstance(self._iterator, AsyncIterator):
            return next(self._iterator, _END)
        if self._reading is None:
            # A task of its own: the end of a call cancels the writer, and not this.
            self._reading = asyncio.create_task(_anext(self._iterator))
        await asyncio.wait({self._reading})
        reading, self._reading = self._reading, None
        return reading.result()

    def leave_last_to(self, state: StreamState[Any, Any]) -> None:
        """Add an input that was read but that no writer has taken."""
        if self._reading is None or not self._reading.done() or self._reading.exception():
            return
        item = self._reading.result()
        if item is not _END:
            self._reading = None
            with suppress(TypeError, ValueError):  # then it is among the remaining as it is
                state.add(item)

    def stop(self) -> None:
        """Cancel the wait for an input."""
        if self._reading is not None:
            self._reading.cancel()

    async def cancel(self) -> None:
        """Cancel the wait for an input, and wait until it has ended."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


async def _anext(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, _END)


class _Bell:
    """A signal for one waiter; without a waiter it does nothing."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    def next(self) -> "asyncio.Future[None]":
        """Return a future that the next `ring` completes."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def ring(self) -> None:
        """Wake the waiter."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
