"""Keeps account of the calls that are open: what they hold, and how long they may hold it.

A call holds a place; the bytes of its request, from before they come in until it is answered; and
the bytes of its answer, from before they are made until its client has taken them. Each is
limited over all connections together and shared between callers. A call that takes too long to
send its message, or to take its answer, is ended.
"""

import asyncio
import contextlib
import gc
import logging
import math
import time
from contextvars import ContextVar
from enum import Enum, auto
from functools import lru_cache
from typing import Any

import grpc.aio

from embedgrpc.engine.errors import DeadlineExpiredError, EngineError, OverloadedError
from embedgrpc.machine.malloc import trim_memory
from embedgrpc.server.calls.budget import Budget, Caller
from embedgrpc.server.calls.call_metadata import caller_of
from embedgrpc.server.rpc.errors import message_of, status_code, trailing_metadata
from embedgrpc.server.rpc.handlers import forget_frames
from embedgrpc.server.settings.settings import Settings

_logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 0.25
# What gives way to others may be as slow as it likes for this long.
_RECEIVE_S_MIN = 1.0
_TAKE_S_MIN = 5.0
# A stream that waits for its client for longer gives way to streams that wait to be read.
_IDLE_S_MIN = 5.0
# How long gRPC may take to send a status: it waits behind an answer that is not taken.
_END_S_MAX = 5.0
# How long gRPC may take to tell that a call is over.
_CANCELLATION_S_MAX = 1.0
_RETRY_DELAY_S = 1.0
# What is worth returning to the system.
_BURST_BYTES = 16 * 1024 * 1024
# A message that has come in is parsed, and its texts are made of that.
_REQUEST_COPIES = 2
# An answer is there twice until it is taken: as it was made, and in gRPC's core.
_ANSWER_COPIES = 2
_KNOWN_CONNECTIONS_MAX = 16_384
# Most streams that wait for a message have not been sent a part of one: they reserve this share.
_WAITING_SHARE = 1 / 4
# What one answer to a stream may reserve of the budget, so that it fits in beside others.
_STREAM_ANSWER_SHARE = 9
# How many of the largest messages may come in at once for methods whose messages are small.
_SMALL_MESSAGES = 8
# The event loop serves others between so many tasks that are looked at.
_TASKS_AT_ONCE = 500
# The names of the two tasks in which gRPC runs a call: one waits for the end of the call.
_OUTER_TASK = "rpc_task"


class _State(Enum):
    """What a call is doing."""

    WORKING = auto()
    RECEIVING = auto()
    IDLE = auto()
    ANSWERING = auto()
    ENDING = auto()


class OpenCall:
    """One call, from when its handler begins until gRPC has finished it.

    Attributes:
        caller: Who called.
        context: gRPC's context of it.
        state: What it is doing.
        since: When it began to do that, on the loop's clock.
        until: When it is ended if it still does that.
    """

    __slots__ = (
        "_books",
        "_requests",
        "answer_bytes",
        "began",
        "caller",
        "context",
        "placed",
        "request_bytes",
        "since",
        "state",
        "stream_bytes",
        "until",
    )

    def __init__(self, books: "OpenCalls", caller: Caller, context: Any, now: float) -> None:
        self._books = books
        self._requests = books.requests
        self.caller = caller
        self.context = context
        self.state = _State.WORKING
        self.began = self.since = now
        self.until = math.inf
        self.placed = False
        self.request_bytes = self.stream_bytes = self.answer_bytes = 0

    def use_small_messages(self) -> None:
        """Receive from a budget of its own, which calls with texts do not use.

        For methods whose messages are small, such as health checks. A client may send part of a
        large message to them all the same.
        """
        self._requests = self._books.small_requests

    @property
    def waits_for_client(self) -> bool:
        """Whether it waits for the client to send a message, and not for room to receive it."""
        return self.state in (_State.RECEIVING, _State.IDLE)

    def is_receiving_from(self, budget: Budget) -> bool:
        """Whether the message of this call comes in, and takes its room of a budget."""
        return self.state is _State.RECEIVING and self._requests is budget

    async def read_first(self) -> Any:
        """Read the first message, in bytes; gRPC's EOF where there is none.

        Raises:
            OverloadedError: Messages of others leave no room for it.
            grpc.aio.AbortError: It did not come in time; the client has been told.
        """
        books, requests = self._books, self._requests
        if not requests.try_take(self.caller, books.message_bytes):
            try:
                async with asyncio.timeout(books.room_wait_s):
                    await requests.take(self.caller, books.message_bytes)
            except TimeoutError:
                raise OverloadedError(
                    f"other requests left no room to receive this one for {books.room_wait_s:g} s",
                    retry_delay_s=_RETRY_DELAY_S,
                    metadata={"label": "no_room_to_receive"},
                ) from None
        self.request_bytes = books.message_bytes
        self.since = now = time.monotonic()
        self.state, self.until = _State.RECEIVING, now + books.max_receive_s
        message = await self.context.read()
        self.state, self.until = _State.WORKING, math.inf
        held = len(message) * _REQUEST_COPIES if isinstance(message, bytes) else 0
        self.request_bytes = held
        if held <= books.message_bytes:
            requests.give_back(self.caller, books.message_bytes - held)
        else:
            requests.force(self.caller, held - books.message_bytes)
        return message

    def release_only_request(self) -> None:
        """Count out the message of a call that is not needed any more."""
        if self.request_bytes:
            self._requests.give_back(self.caller, self.request_bytes)
            self.request_bytes = 0

    async def read_next(self, *, idle_timeout_s: float) -> Any:
        """Read a message of a stream after the first, in bytes; gRPC's EOF after the last.

        Args:
            idle_timeout_s: How long the client may send none; infinity where others look at that.
        """
        books = self._books
        # As long as what the client has sent before takes all the room, it stays where it is.
        await books.requests.take(self.caller, books.message_bytes)
        books.requests.give_back(self.caller, books.message_bytes)
        await books.streams.take(self.caller, books.waiting_bytes)
        self.stream_bytes = books.waiting_bytes
        try:
            self.since = now = time.monotonic()
            self.state, self.until = _State.IDLE, now + idle_timeout_s
            return await self.context.read()
        finally:
            if self.state is _State.IDLE:
                self.state, self.until = _State.WORKING, math.inf
            reserved, self.stream_bytes = self.stream_bytes, 0
            if reserved:
                books.streams.give_back(self.caller, reserved)

    def hold_request(self, size: int) -> None:
        """Count in a message of a stream that has been received."""
        held = size * _REQUEST_COPIES
        self.request_bytes += held
        self._requests.force(self.caller, held)

    def release_request(self, size: int) -> None:
        """Count out what is no longer needed of the messages of a stream."""
        held = size * _REQUEST_COPIES
        self.request_bytes -= held
        self._requests.give_back(self.caller, held)

    async def reserve_only_answer(self, size: int) -> None:
        """Wait until there is room for the answer of a unary call, before it is made.

        Raises:
            OverloadedError: Answers of others leave no room for it.
        """
        books = self._books
        reserved = books.answers.largest(size * _ANSWER_COPIES)
        if not books.answers.try_take(self.caller, reserved):
            try:
                async with asyncio.timeout(books.room_wait_s):
                    await books.answers.take(self.caller, reserved)
            except TimeoutError:
                raise OverloadedError(
                    "other answers that are made, or not taken, left no room for this one, of up"
                    f" to {size} bytes, for {books.room_wait_s:g} s",
                    retry_delay_s=_RETRY_DELAY_S,
                    metadata={"label": "no_room_for_answer"},
                ) from None
        self.answer_bytes += reserved

    async def reserve_answers(self, size: int) -> int:
        """Wait until there is room for answers of a stream, before they are made.

        Returns:
            The bytes that are reserved, to be released once they have been taken.
        """
        reserved = min(size, self._books.answers.total // _STREAM_ANSWER_SHARE)
        await self._books.answers.take(self.caller, reserved)
        self.answer_bytes += reserved
        return reserved

    def release_answers(self, size: int) -> None:
        """Count out what was reserved for answers that have been taken."""
        self.answer_bytes -= size
        self._books.answers.give_back(self.caller, size)

    async def write(self, message: Any) -> None:
        """Write a message of a stream that nobody else looks at; end a client that is too slow."""
        self.since = now = time.monotonic()
        self.state, self.until = _State.ANSWERING, now + self._books.stream_idle_timeout_s
        await self.context.write(message)
        self.state, self.until = _State.WORKING, math.inf

    def answer(self, size: int) -> None:
        """Count the bytes of the only answer, which gRPC is about to send."""
        books = self._books
        held = size * _ANSWER_COPIES
        if self.answer_bytes < held:
            books.answers.force(self.caller, held - self.answer_bytes)
        elif self.answer_bytes > held:
            books.answers.give_back(self.caller, self.answer_bytes - held)
        self.answer_bytes = held
        self.release_only_request()
        self.since = now = time.monotonic()
        self.state = _State.ANSWERING
        self.until = max(self.began + books.max_unary_s, now + _TAKE_S_MIN)

    async def end(self, error: EngineError) -> None:
        """Tell the client why its call fails.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self.state, self.until = _State.ENDING, time.monotonic() + _END_S_MAX
        await self.context.abort(status_code(error), message_of(error), trailing_metadata(error))

    async def leave(self) -> None:
        """End a call whose client has left, or does not take what is written.

        gRPC tells of a cancellation a moment after a write has failed: its client has left, which
        is no incident.
        """
        self.state, self.until = _State.ENDING, time.monotonic() + _CANCELLATION_S_MAX
        await asyncio.Event().wait()

    def close(self) -> None:
        """Give back all that it holds."""
        books = self._books
        if self.placed:
            books.places.give_back(self.caller, 1)
        if self.request_bytes:
            self._requests.give_back(self.caller, self.request_bytes)
        if self.stream_bytes:
            books.streams.give_back(self.caller, self.stream_bytes)
        if self.answer_bytes:
            books.answers.give_back(self.caller, self.answer_bytes)
        self.placed = False
        self.request_bytes = self.stream_bytes = self.answer_bytes = 0
        # A timer that was cancelled keeps this call, as part of its context, for a while.
        self.context = None


# A connection that was forgotten while it had calls would have two shares for a while.
@lru_cache(_KNOWN_CONNECTIONS_MAX)
def _caller(address: str, connection: str) -> Caller:
    return Caller(address, connection)


_current: ContextVar[OpenCall | None] = ContextVar("open_call", default=None)


def current_call() -> OpenCall | None:
    """Return the call in whose task, or in a task that it started, this runs."""
    return _current.get()


async def reserve_answer(size: int) -> None:
    """Wait until there is room for the answer of the running call, in bytes."""
    call = _current.get()
    if call is not None:
        await call.reserve_only_answer(size)


async def write(context: Any, message: Any) -> None:
    """Write a message of the running call; end it if the client does not take it."""
    call = _current.get()
    await (context if call is None else call).write(message)


class OpenCalls:
    """All calls that are open. For one event loop.

    Args:
        settings: The limits.
        message_bytes_max: The most bytes of a message, where the listener takes less than the
            settings say.

    Attributes:
        places: How many calls are open.
        requests: Bytes of requests that come in, or that are worked on.
        small_requests: The same of methods whose messages are small.
        streams: Bytes that streams may be sent while they wait for their next message.
        answers: Bytes of answers that are made, or wait to be taken.
    """

    def __init__(self, settings: Settings, *, message_bytes_max: int | None = None) -> None:
        self.places = Budget(settings.max_calls)
        self.requests = Budget(settings.max_held_request_bytes)
        self.streams = Budget(settings.max_held_request_bytes)
        self.answers = Budget(settings.max_held_answer_bytes)
        self.message_bytes = self.requests.largest(message_bytes_max or settings.max_request_bytes)
        self.waiting_bytes = max(int(_WAITING_SHARE * self.message_bytes), 1)
        self.small_requests = Budget(_SMALL_MESSAGES * self.message_bytes)
        self.room_wait_s = settings.max_queue_s
        self.max_receive_s = settings.max_receive_s
        self.max_unary_s = settings.max_unary_s
        self.stream_idle_timeout_s = settings.stream_idle_timeout_s
        self._max_calls = settings.max_calls
        self._caller_metadata = settings.caller_metadata
        self._open: dict[asyncio.Task[Any], OpenCall] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._held_bytes_max = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, context: Any) -> OpenCall:
        """Count in the call of the running task, until that task has ended."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        caller = _caller(caller_of(context, self._caller_metadata), context.peer())
        call = self._open[task] = OpenCall(self, caller, context, time.monotonic())
        task.add_done_callback(self._closed)
        _current.set(call)
        return call

    def take_place(self, call: OpenCall) -> None:
        """Give a call its place.

        Raises:
            OverloadedError: The caller has too many calls open, beside those of others.
        """
        call.placed = self.places.try_take(call.caller, 1)
        if not call.placed:
            raise OverloadedError(
                f"too many calls are open; the server takes {self._max_calls}, shared between"
                " its callers",
                retry_delay_s=_RETRY_DELAY_S,
                metadata={"label": "too_many_calls", "limit": str(self._max_calls)},
            )

    async def watch(self) -> None:
        """End calls that are late, as long as the server runs."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            try:
                await self._sweep()
                await self._return_memory()
            except Exception:
                _logger.exception("calls could not be looked at")

    async def _sweep(self) -> None:
        now = time.monotonic()
        late = [(task, call) for task, call in self._open.items() if call.until <= now]
        late += self._give_way(now)
        stuck: list[asyncio.Task[Any]] = []
        for task, call in late:
            if call.state in (_State.ANSWERING, _State.ENDING):
                stuck.append(task)
                # Not again in the next round.
                call.until = math.inf
            else:
                self._end_later(call, self._too_late(call, now))
        if stuck:
            await _end_at_once(stuck)

    async def _return_memory(self) -> None:
        """Return to the system what calls have let go of; malloc would keep it."""
        held = self.requests.held + self.small_requests.held + self.answers.held
        self._held_bytes_max = max(self._held_bytes_max, held)
        if self._held_bytes_max > _BURST_BYTES and held < self._held_bytes_max // 4:
            self._held_bytes_max = held
            await asyncio.to_thread(trim_memory)

    def _give_way(self, now: float) -> list[tuple["asyncio.Task[Any]", OpenCall]]:
        """Choose slow calls of callers whose other calls wait for what these hold."""
        chosen = []
        for budget, state, least_s in (
            (self.requests, _State.RECEIVING, _RECEIVE_S_MIN),
            (self.small_requests, _State.RECEIVING, _RECEIVE_S_MIN),
            (self.streams, _State.IDLE, _IDLE_S_MIN),
            (self.answers, _State.ANSWERING, _TAKE_S_MIN),
        ):
            receiving = state is _State.RECEIVING
            waiting: dict[str, int] = {}
            for caller, count in budget.waiting(since=now - _RECEIVE_S_MIN).items():
                waiting[caller.address] = waiting.get(caller.address, 0) + count
            if not waiting:
                continue
            # The calls stand in the order in which they came.
            for task, call in self._open.items():
                address = call.caller.address
                if (
                    call.state is state
                    and (not receiving or call.is_receiving_from(budget))
                    and now - call.since >= least_s
                    and call.until > now
                    and waiting.get(address)
                ):
                    waiting[address] -= 1
                    chosen.append((task, call))
        return chosen

    def _too_late(self, call: OpenCall, now: float) -> EngineError:
        """Tell why a call is ended that waits for a message of its client."""
        if call.state is _State.IDLE and call.until > now:
            return OverloadedError(
                f"the client sent no message for {now - call.since:.1f} s, and other streams wait"
                " to be read",
                retry_delay_s=_RETRY_DELAY_S,
                metadata={"label": "stream_gave_way"},
            )
        if call.state is not _State.RECEIVING:
            return DeadlineExpiredError(
                f"the client sent no message for {self.stream_idle_timeout_s:g} s",
                metadata={"label": "stream_idle"},
            )
        if call.until <= now:
            return DeadlineExpiredError(
                f"the message did not come in whole within {self.max_receive_s:g} s",
                metadata={"label": "message_too_slow", "limitSeconds": f"{self.max_receive_s:g}"},
            )
        return OverloadedError(
            f"the message did not come in whole within {now - call.since:.1f} s, and others wait"
            " to be received",
            retry_delay_s=_RETRY_DELAY_S,
            metadata={"label": "message_too_slow"},
        )

    def _end_later(self, call: OpenCall, error: EngineError) -> None:
        async def end() -> None:
            if call.state is not _State.ENDING:
                # The message came in at the last moment.
                return
            try:
                await call.end(error)
            except (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError) as ended:
                # The call's own task hears of it from the read in which it waits.
                forget_frames(ended)

        # Not again in the next round.
        call.state, call.until = _State.ENDING, time.monotonic() + _END_S_MAX
        task = asyncio.create_task(end())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _closed(self, task: "asyncio.Task[Any]") -> None:
        self._open.pop(task).close()


async def _end_at_once(tasks: list["asyncio.Task[Any]"]) -> None:
    """End calls whose clients do not take what they are sent.

    gRPC has no way to say that: a status is only sent behind what was written before. But its
    core ends a call that no object stands for. Two tasks hold this object: that of the handler,
    and one that waits for the end of the call.
    """
    wanted = set(tasks)
    for number, outer in enumerate(asyncio.all_tasks(), start=1):
        if number % _TASKS_AT_ONCE == 0:
            await asyncio.sleep(0)
        if outer.get_name() != _OUTER_TASK:
            continue
        for scope in gc.get_referents(outer.get_coro()):
            if wanted.intersection(
                one for one in gc.get_referents(scope) if isinstance(one, asyncio.Task)
            ):
                outer.cancel()
    for task in tasks:
        task.cancel()
    _logger.info("calls ended whose answers were not taken", extra={"calls": len(tasks)})
    # Logged once for all, and never by gRPC.
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait(tasks, timeout=_CANCELLATION_S_MAX)
