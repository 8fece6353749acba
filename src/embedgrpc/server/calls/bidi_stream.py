"""One bidirectional stream: reads as far ahead as its window allows, writes what is ready.

The handler's task writes; a second task reads. A window of inputs that are taken in and not
answered couples them: when the client does not read its answers, the server stops reading.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from embedgrpc.engine.errors import DeadlineExpiredError, EngineError, ShuttingDownError
from embedgrpc.server.calls.open_calls import current_call
from embedgrpc.server.calls.requests import RequestStream
from embedgrpc.server.connections.activity import note_activity

AnswerT = TypeVar("AnswerT")


@dataclass(slots=True)
class _Taken:
    """What is held for a message until its inputs are answered."""

    inputs: int
    request_bytes: int
    answer_bytes: int = 0


class BidiStream(Generic[AnswerT]):
    """The state of one stream.

    Args:
        context: The RPC's context.
        requests: Its messages.
        idle_timeout_s: How long the client may neither send, while nothing is in flight, nor
            read what is written.
    """

    def __init__(self, context: Any, requests: RequestStream, *, idle_timeout_s: float) -> None:
        self._context = context
        self._requests = requests
        self._call = current_call()
        # The size of the message that was read last, until its inputs are taken in.
        self._untaken_bytes = 0
        self._taken: deque[_Taken] = deque()
        self._idle_timeout_s = idle_timeout_s
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
        """Runs the stream to its end. Called once, in the handler's task.

        Args:
            read: Reads all requests, by `receive`, and starts the work on them.
            pack: Takes answers from the front of a queue and makes one message of them; tells
                how many inputs it answers. The queue is not empty.

        Raises:
            EngineError: The client broke the protocol, was idle or too slow, or the server is
                about to stop. What was taken in before is answered first, but for the slow.
        """
        handler = asyncio.current_task()
        watch = asyncio.create_task(self._watch(handler))
        reader = self._reader = asyncio.create_task(self._read(read))
        try:
            while self._in_flight or not reader.done():
                self._changed.clear()
                while self._outbox:
                    message, inputs = pack(self._outbox)
                    await self._write(message)
                    self._answered(inputs)
                if reader.done():
                    # A fault of ours: what was taken in may never be answered.
                    reader.result()
                if self._in_flight or not reader.done():
                    await self._changed.wait()
            reader.result()
        except asyncio.CancelledError:
            # Cancelled by our own watch, and by nobody else?
            if not self._gave_up or handler is None or handler.uncancel():
                raise
        finally:
            watch.cancel()
            reader.cancel()
            await asyncio.gather(watch, reader, return_exceptions=True)
            # It holds this stream, too.
            self._reader = None
        if self._failure is not None:
            raise self._failure

    async def write_first(self, message: Any) -> None:
        """Writes a message before there are answers. From `read`, before the first `take`."""
        await self._write(message)

    async def receive(self) -> AsyncIterator[Any]:
        """Gives the requests one by one, until the client is done or the server drains."""
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

    def set_window(self, inputs: int) -> None:
        """Sets how many inputs may be in flight."""
        self._window = inputs

    async def take(self, inputs: int, *, answer_bytes: int) -> None:
        """Waits until the window has room for the inputs of a message, and counts them in.

        More than the whole window are let in when nothing else is in flight. Then it waits until
        the server has room for their answers.

        Args:
            inputs: How many there are.
            answer_bytes: The most bytes of their answers.
        """
        while self._in_flight and self._in_flight + inputs > self._window:
            self._room.clear()
            await self._room.wait()
        self._in_flight += inputs
        taken = _Taken(inputs, self._untaken_bytes)
        self._taken.append(taken)
        self._untaken_bytes = 0
        if self._call is not None:
            taken.answer_bytes = await self._call.reserve_answers(answer_bytes)

    def answer(self, answer: AnswerT) -> None:
        """Puts an answer into the outbox. On the event loop."""
        self._outbox.append(answer)
        self._changed.set()

    def drain(self, why: str, *, label: str) -> None:
        """Takes in no more; the stream ends when all is answered. On the event loop.

        Args:
            why: What the client is told then.
            label: The same for programs.
        """
        if self._reader is not None and self._reader.done():
            # The client has sent all that it wanted to: nothing is refused.
            return
        self._draining = True
        if self._failure is None:
            self._failure = ShuttingDownError(why, metadata={"label": label})
        if self._reading and self._reader is not None:
            self._reader.cancel()

    async def _read(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except EngineError as error:
            # Its frames hold this stream.
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
        # Which message an answer belongs to does not matter: all of them are let go in the end.
        while inputs:
            first = self._taken[0]
            answered = min(first.inputs, inputs)
            first.inputs -= answered
            inputs -= answered
            if not first.inputs:
                self._taken.popleft()
                if self._call is not None:
                    self._call.release_request(first.request_bytes)
                    self._call.release_answers(first.answer_bytes)

    def _hold(self, size: int) -> None:
        """Count in a message, and the one before it out, unless its inputs were taken in."""
        if self._call is not None:
            self._call.release_request(self._untaken_bytes)
            self._call.hold_request(size)
        self._untaken_bytes = size

    async def _watch(self, handler: "asyncio.Task[Any] | None") -> None:
        """Ends the stream of a client that went silent."""
        while True:
            waits_for_message = self._reading and not self._in_flight
            if waits_for_message and self._call is not None and not self._writing:
                if self._call.waits_for_client:
                    self._active_at = max(self._active_at, self._call.since)
                else:
                    # It has not been read for want of room, which is not the client's fault.
                    waits_for_message = False
            idle_s = time.monotonic() - self._active_at
            waits_for_client = self._writing or waits_for_message
            if waits_for_client and idle_s >= self._idle_timeout_s:
                break
            left_s = self._idle_timeout_s - idle_s if waits_for_client else self._idle_timeout_s
            await asyncio.sleep(max(left_s, 0.01))
        label = "client_too_slow" if self._writing else "stream_idle"
        what = "read no answer" if self._writing else "sent no message"
        self._failure = DeadlineExpiredError(
            f"the client {what} for {self._idle_timeout_s:g} s",
            metadata={"label": label, "idleTimeoutSeconds": f"{self._idle_timeout_s:g}"},
        )
        self._gave_up = True
        if handler is not None:
            handler.cancel()
