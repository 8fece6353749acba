"""The streams of results for asyncio.

One task writes the requests; the caller's task reads the responses. The writer does not refer to
the `AsyncResultStream`, so a stream that the caller drops is garbage collected, and that ends the
call.
"""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from contextlib import aclosing
from typing import Any, Final, Generic

import grpc
from typing_extensions import Self

from embedgrpc.client.attempts import Attempts
from embedgrpc.client.cancellation import closed_error
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
from embedgrpc.client.status_errors import is_status_lost
from embedgrpc.client.stream_state import ReadyT, ResultT, StreamState

_END: Final = object()


class AsyncResultStream(AsyncIterator[ResultT], Generic[ResultT, ReadyT]):
    """The results of a stream, one by one. The call starts when you ask for the first.

    To end the call early, use `aclose()`, leave an `async with` block or drop the stream. Only
    one task may iterate. When the server fails, the error has the `unanswered_ids`. An exception
    of the inputs is raised after the results of the inputs before it. A plain iterable runs on
    the event loop: if it blocks, give an asynchronous one.
    """

    def __init__(
        self,
        state: StreamState[ResultT, ReadyT],
        start: Callable[[Callable[[Stubs], Any], Attempts], Awaitable[tuple[Any, Slot]]],
        new_attempts: Callable[[float], Attempts],
        error_of: Callable[[Any], EmbedGrpcError],
    ) -> None:
        self._state = state
        self._start = start
        self._new_attempts = new_attempts
        self._error_of = error_of
        self._attempts: Attempts | None = None
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

    async def aclose(self) -> None:
        """End the call and drop the results that are left. Safe to repeat."""
        self._cancel()
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

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

    async def _receive(self) -> bool:
        """Wait for the next results; return False at the end of the stream."""
        if self._finished:
            return False
        if self._call is None:
            await self._begin()
        failure: EmbedGrpcError | None = None
        cause: Exception | None = self._state.input_error
        try:
            response = await self._read()
            results = (
                self._state.take_failed()
                if response is None or response is grpc.aio.EOF
                else self._state.receive(response)
            )
            self._results.extend(results)
            self._room.set()
            if results or response is not grpc.aio.EOF:
                return True
        except grpc.RpcError as error:
            if await self._prepare_retry(error):
                return True
            failure, cause = self._error_of(error), error
        except EmbedGrpcError as error:
            failure = error
        except Exception:
            await self.aclose()  # otherwise a call that could not start keeps its slot
            raise
        await self.aclose()
        outcome = self._state.outcome(failure)
        if outcome is not None:
            raise outcome from cause
        return False

    async def _begin(self) -> None:
        if self._attempts is None:
            self._attempts = self._new_attempts(self._state.timeout_s)
        self._call, self._slot = await self._start(self._state.method, self._attempts)
        self._writing = asyncio.create_task(
            _write(self._call, self._state, self._room, self._failures)
        )

    async def _prepare_retry(self, failure: grpc.RpcError) -> bool:
        """Prepare another call if the server refused this one; return whether it did.

        Also if gRPC lost the status: no input was read yet, and the next call may show it.
        """
        if self._state.ready is not None or self._attempts is None or self._slot is None:
            return False
        delay_s = (
            self._attempts.next_delay_s()
            if is_status_lost(failure)
            else self._attempts.delay_s(failure, self._slot)
        )
        if delay_s is None or self._writing is None:
            return False
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        self._call = self._writing = None
        await asyncio.sleep(delay_s)
        return True

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

    def _cancel(self) -> None:
        self._finished = True
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
    room: asyncio.Event,
    failures: "_Bell",
) -> None:
    try:
        await call.write(state.setup)
        async with aclosing(_messages(state, room, failures)) as messages:
            async for message in messages:
                await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return  # the call has ended: reading from it raises the reason


async def _messages(
    state: StreamState[Any, Any], room: asyncio.Event, failures: "_Bell"
) -> AsyncGenerator[Any]:
    failure: Exception | None = None
    try:
        inputs = state.inputs
        iterator = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        while True:
            while not state.has_room():
                room.clear()
                await room.wait()
            message = state.next_message()
            if message is None:
                item = await _next(iterator)
                if item is _END:
                    break
                message = state.add(item)
                if state.has_failed():
                    failures.ring()
            if message is not None:
                yield message
    except Exception as error:  # noqa: BLE001 -- of the caller's inputs, raised where it iterates
        failure = error
    last_message = state.end_inputs(failure)
    if last_message is not None:
        yield last_message


async def _next(iterator: AsyncIterator[Any] | Iterator[Any]) -> Any:
    if isinstance(iterator, AsyncIterator):
        return await anext(iterator, _END)
    return next(iterator, _END)


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
