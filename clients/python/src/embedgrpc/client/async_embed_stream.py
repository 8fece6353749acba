"""A stream of embeddings over a channel of asyncio.

One task writes requests; the caller's own reads answers. The writer does not refer to the
`AsyncEmbedStream`, so one that is dropped is collected, and that ends the call.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Protocol, Self

import grpc

from embedgrpc.client.cancellation import ended_here_error
from embedgrpc.client.channel import Attempts
from embedgrpc.client.concurrency import Slot
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.status_errors import is_status_lost
from embedgrpc.client.stream_state import AsyncStreamInputs, StreamState
from embedgrpc.v1 import embedding_service_pb2 as pb

_END: Final = object()


class AsyncStarter(Protocol):
    """What a stream needs of its client."""

    def attempts(self, timeout_s: float) -> Attempts:
        """Gives the time to start a call in."""

    async def start_stream(self, attempts: Attempts) -> tuple[Any, Slot]:
        """Starts a call, once fewer others are in flight."""

    def error_of(self, failure: Any) -> EmbedGrpcError:
        """Reads why a call failed."""


class AsyncEmbedStream(AsyncIterator[StreamResult]):
    """Results of a stream, one by one; the call begins with the first of them.

    Closing it, by `aclose()`, an `async with` block or by dropping it, ends the call. One task
    may iterate. When the server fails, the error has the `unanswered_ids`; an exception that
    the inputs raise comes after the results of the inputs before it. A plain iterable is
    advanced on the event loop: where that takes long, give an asynchronous one.
    """

    def __init__(self, client: AsyncStarter, state: StreamState[AsyncStreamInputs]) -> None:
        self._client = client
        self._state = state
        self._attempts: Attempts | None = None
        self._slot: Slot | None = None
        self._room = asyncio.Event()
        self._failures = _Bell()
        self._results: deque[StreamResult] = deque()
        self._call: Any = None
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._finished = False

    @property
    def input_tokens(self) -> int:
        """Tokens the model read for the results so far."""
        return self._state.input_tokens

    async def ready(self) -> StreamReady:
        """Waits for the terms of the stream.

        Returns:
            Model, revision, fingerprint and limits.

        Raises:
            EmbedGrpcError: The server refused the stream, or failed.
            RuntimeError: The stream was closed before.
        """
        while self._state.ready is None:
            if not await self._receive():
                raise RuntimeError("the stream was closed before it was ready")
        return self._state.ready

    async def aclose(self) -> None:
        """Ends the call; results that were not taken are lost. Safe to repeat."""
        self._cancel()
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __anext__(self) -> StreamResult:
        while not self._results:
            if not await self._receive():
                raise StopAsyncIteration
        return self._results.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._writing is not None and not self._writing.get_loop().is_closed():
            self._cancel()

    async def _receive(self) -> bool:
        """Takes the next answer in; False at the end of the stream."""
        if self._finished:
            return False
        if self._call is None:
            await self._begin()
        failure: EmbedGrpcError | None = None
        cause: Exception | None = self._state.input_error
        try:
            answer = await self._read()
            results = (
                self._state.take_failed()
                if answer is None or answer is grpc.aio.EOF
                else self._state.receive(answer)
            )
            self._results.extend(results)
            self._room.set()
            if results or answer is not grpc.aio.EOF:
                return True
        except grpc.RpcError as error:
            if await self._begins_again(error):
                return True
            failure, cause = self._client.error_of(error), error
        except EmbedGrpcError as error:
            failure = error
        except Exception:
            await self.aclose()  # else a call that could not be started keeps its slot
            raise
        await self.aclose()
        outcome = self._state.outcome(failure)
        if outcome is not None:
            raise outcome from cause
        return False

    async def _begin(self) -> None:
        if self._attempts is None:
            self._attempts = self._client.attempts(self._state.timeout_s)
        self._call, self._slot = await self._client.start_stream(self._attempts)
        self._writing = asyncio.create_task(
            _write(self._call, self._state, self._room, self._failures)
        )

    async def _begins_again(self, failure: grpc.RpcError) -> bool:
        """Prepares another call where the server refused this one without a look at it.

        Also where the reason was lost: no input was taken yet, and the next call may tell.
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
        """Waits for the next answer; None once an input failed without one.

        A wait that is cancelled loses nothing.
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
            raise ended_here_error()  # the call was: a task that is cancelled stops above
        return reading.result()

    def _cancel(self) -> None:
        self._finished = True
        self._results.clear()
        if self._writing is not None:
            self._writing.cancel()
            self._call.cancel()


async def _write(
    call: Any,
    state: StreamState[AsyncStreamInputs],
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
        return  # the call is over: whoever reads learns why


async def _messages(
    state: StreamState[AsyncStreamInputs], room: asyncio.Event, failures: "_Bell"
) -> AsyncGenerator[pb.StreamEmbedRequest]:
    failure: Exception | None = None
    try:
        inputs = state.inputs
        iterator = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        while True:
            while not state.has_room():
                room.clear()
                await room.wait()
            item = await _next(iterator)
            if item is _END:
                break
            message = state.add(item)
            if state.has_failed():
                failures.ring()
            if message is not None:
                yield message
    except Exception as error:  # noqa: BLE001 -- the caller's own, raised where it iterates
        failure = error
    last_message = state.end_inputs(failure)
    if last_message is not None:
        yield last_message


async def _next(iterator: AsyncIterator[Any] | Iterator[Any]) -> Any:
    if isinstance(iterator, AsyncIterator):
        return await anext(iterator, _END)
    return next(iterator, _END)


class _Bell:
    """Wakes the one who waits for it, if somebody does."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    def next(self) -> "asyncio.Future[None]":
        """Returns what ends with the next `ring`."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def ring(self) -> None:
        """Wakes."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
