"""One bidirectional stream: reads as far ahead as its window allows, and writes what is ready.

The handler's task writes; a second task reads. A window of inputs that are accepted but not
answered couples them: when the client stops reading answers, the server stops reading requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from embedgrpc.engine.errors import DeadlineExpiredError, EngineError
from embedgrpc.server.calls.open_call import current_call
from embedgrpc.server.calls.requests import RequestStream
from embedgrpc.server.connections.activity import note_activity

AnswerT = TypeVar("AnswerT")


@dataclass(slots=True)
class _Accepted:
    """What a message holds until its inputs are answered."""

    inputs: int
    request_bytes: int
    answer_bytes: int = 0


class BidiStream(Generic[AnswerT]):
    """The state of one stream.

    Args:
        context: The RPC's context.
        requests: Its request messages.
        idle_timeout_s: How long the client may read no answer, or send no message while nothing
            is in flight.
    """

    def __init__(self, context: Any, requests: RequestStream, *, idle_timeout_s: float) -> None:
        self._context = context
        self._requests = requests
        self._call = current_call()
        # The size of the last message, until its inputs are accepted.
        self._unaccepted_bytes = 0
        self._accepted: deque[_Accepted] = deque()
        self._idle_timeout_s = idle_timeout_s
        # Inputs of a message that is not complete yet: they wait for the client.
        self.incomplete_inputs = 0
        self._window = 1
        self._in_flight = 0
        self._outbox: deque[AnswerT] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._reading = False
        self._writing = False
        self._active_at = time.monotonic()
        self._failure: EngineError | None = None
        self._draining = False
        self._gave_up = False
        self._reader: asyncio.Task[None] | None = None

    async def run(
        self,
        read: Callable[[], Awaitable[None]],
        pack: Callable[[deque[AnswerT]], tuple[Any, int]],
    ) -> None:
        """Run the stream to its end. Called once, in the handler's task.

        Args:
            read: Reads all requests, with `receive`, and starts the work on them.
            pack: Takes answers from the front of a queue, which is not empty. Returns one
                message of them, and how many inputs it answers.

        Raises:
            EngineError: The client broke the protocol or was idle, or the server is about to
                stop: after every accepted input is answered. Or the client was too slow: at once.
        """
        handler = asyncio.current_task()
        watch = asyncio.create_task(self._watch(handler))
        reader = self._reader = asyncio.create_task(self._read(read))
        try:
            while self._in_flight or self._outbox or not reader.done():
                self._changed.clear()
                while self._outbox:
                    message, inputs = pack(self._outbox)
                    await self._write(message)
                    self._answered(inputs)
                if reader.done():
                    # After a bug in `read`, some accepted inputs may never be answered.
                    reader.result()
                if self._in_flight or not reader.done():
                    await self._changed.wait()
            reader.result()
        except asyncio.CancelledError:
            # Did only `_watch` cancel it?
            if not self._gave_up or handler is None or handler.uncancel():
                raise
        finally:
            watch.cancel()
            reader.cancel()
            await asyncio.gather(watch, reader, return_exceptions=True)
            # The task references this stream.
            self._reader = None
        if self._failure is not None:
            raise self._failure

    async def write_first(self, message: Any) -> None:
        """Write a message before there are answers. From `read`, before the first `accept`."""
        await self._write(message)

    async def receive(self) -> AsyncIterator[Any]:
        """Yield the requests, until the client is done or the server drains."""
        while not self._draining:
            self._reading = True
            self._active_at = time.monotonic()
            try:
                request = await anext(self._requests, None)
            finally:
                self._reading = False
            note_activity()
            if request is None:
                return
            self._hold(self._requests.last_bytes)
            yield request
            self._hold(0)

    @property
    def is_draining(self) -> bool:
        """Whether requests are not read any more because the server ends the stream."""
        return self._draining

    def set_window(self, inputs: int) -> None:
        """Set how many inputs may be in flight."""
        self._window = inputs

    async def accept(self, inputs: int, *, answer_bytes: int) -> None:
        """Wait until the window has room for the inputs of a message, and the server for answers.

        When nothing else is in flight, a message may exceed the window.

        Args:
            inputs: How many there are.
            answer_bytes: The most bytes of their answers.
        """
        while self._in_flight and self._in_flight + inputs > self._window:
            self._room.clear()
            await self._room.wait()
        self._in_flight += inputs
        accepted = _Accepted(inputs, self._unaccepted_bytes)
        self._accepted.append(accepted)
        self._unaccepted_bytes = 0
        if self._call is not None:
            accepted.answer_bytes = await self._call.reserve_stream_response(answer_bytes)

    def answer(self, answer: AnswerT) -> None:
        """Put an answer into the outbox. On the event loop."""
        self._outbox.append(answer)
        self._changed.set()

    def drain(self, error: EngineError) -> None:
        """Read no more, and end the stream when all is answered. On the event loop.

        Args:
            error: The client's error.
        """
        if self._reader is not None and self._reader.done():
            # The client has sent everything: nothing is refused.
            return
        self._draining = True
        if self._failure is None:
            self._failure = error
        if self._reading and self._reader is not None:
            self._reader.cancel()

    async def _read(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except EngineError as error:
            # Its frames reference this stream.
            self._failure = error.with_traceback(None)
        except asyncio.CancelledError:
            if not self._draining:
                raise
        finally:
            self._changed.set()

    async def _write(self, message: Any) -> None:
        self._writing = True
        self._active_at = time.monotonic()
        await self._context.write(message)
        note_activity()
        self._writing = False
        self._active_at = time.monotonic()

    def _answered(self, inputs: int) -> None:
        self._in_flight -= inputs
        self._room.set()
        # It does not matter which message an answer belongs to: all are released in the end.
        while inputs:
            first = self._accepted[0]
            answered = min(first.inputs, inputs)
            first.inputs -= answered
            inputs -= answered
            if not first.inputs:
                self._accepted.popleft()
                if self._call is not None:
                    self._call.release_stream_request(first.request_bytes)
                    self._call.release_stream_response(first.answer_bytes)

    def _hold(self, size: int) -> None:
        """Count a message, and release the one before it, unless its inputs were accepted."""
        if self._call is not None:
            self._call.release_stream_request(self._unaccepted_bytes)
            self._call.hold_stream_request(size)
        self._unaccepted_bytes = size

    async def _watch(self, handler: "asyncio.Task[Any] | None") -> None:
        """End the stream of a client that went silent."""
        while True:
            waits_for_message = self._reading and self._in_flight <= self.incomplete_inputs
            if waits_for_message and self._call is not None and not self._writing:
                if self._call.waits_for_client:
                    self._active_at = max(self._active_at, self._call.since)
                else:
                    # The server has no room to read: the client is not idle.
                    waits_for_message = False
            idle_s = time.monotonic() - self._active_at
            waits_for_client = self._writing or waits_for_message
            if waits_for_client and idle_s >= self._idle_timeout_s:
                break
            left_s = self._idle_timeout_s - idle_s if waits_for_client else self._idle_timeout_s
            await asyncio.sleep(max(left_s, 0.01))
        label = "CLIENT_TOO_SLOW" if self._writing else "STREAM_IDLE"
        what = "read no answer" if self._writing else "sent no message"
        self._failure = DeadlineExpiredError(
            f"the client {what} for {self._idle_timeout_s:g} s",
            metadata={"label": label, "idleTimeoutSeconds": f"{self._idle_timeout_s:g}"},
        )
        self._gave_up = True
        if handler is not None:
            handler.cancel()
