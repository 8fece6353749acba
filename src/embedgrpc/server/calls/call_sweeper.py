"""Ends calls that are late, or slow while other calls of their caller wait for their room.

And streams whose credentials have expired, or were taken back.
"""

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections import Counter
from typing import Any

import grpc.aio

from embedgrpc.engine.errors import (
    DeadlineExpiredError,
    EngineError,
    OverloadedError,
    UnauthenticatedError,
)
from embedgrpc.machine.malloc import trim_memory
from embedgrpc.server.calls.open_call import (
    CANCELLATION_S_MAX,
    READ_S_MIN,
    RETRY_DELAY_S,
    CallState,
    OpenCall,
)
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.rpc.handlers import forget_frames

_logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 0.25
# Between two looks at the credentials of open streams.
_CHECK_INTERVAL_S = 1.0
# How long a message may come in, however slowly, before its call gives way to others.
_RECEIVE_S_MIN = 1.0
# How long a stream may wait for its client before it gives way to streams that wait to be read.
_IDLE_S_MIN = 5.0
# From this size on, free memory is returned to the system.
_BURST_BYTES = 16 * 1024 * 1024
# The event loop runs other work after this many tasks.
_TASKS_AT_ONCE = 500
# gRPC runs a call in two tasks; the one of this name waits for the end of the call.
_OUTER_TASK = "rpc_task"


class CallSweeper:
    """Checks all open calls, four times a second."""

    def __init__(self, calls: OpenCalls) -> None:
        self._calls = calls
        self._limits = calls.limits
        self._aborts: set[asyncio.Task[None]] = set()
        self._held_bytes_max = 0
        self._checked_at = 0.0

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            try:
                await self._sweep()
                await self._return_memory()
            except Exception:
                _logger.exception("sweeping open calls failed")

    async def _sweep(self) -> None:
        now = time.monotonic()
        late = [(task, call) for task, call in self._calls.by_task() if call.until <= now]
        late += self._give_way(now)
        stuck: list[asyncio.Task[Any]] = []
        for task, call in late:
            if call.state in (CallState.RESPONDING, CallState.ENDING):
                stuck.append(task)
                # Once is enough.
                call.until = math.inf
            else:
                self._abort_later(call, self._reason(call, now))
        if now - self._checked_at >= _CHECK_INTERVAL_S:
            self._checked_at = now
            self._end_invalid()
        if stuck:
            await _end_at_once(stuck)

    def _end_invalid(self) -> None:
        """End the streams whose credentials are no longer valid; unary calls end soon anyway."""
        authenticator = self._calls.authenticator
        if authenticator is None:
            return
        for _, call in tuple(self._calls.by_task()):
            if call.identity is None or authenticator.is_valid(call.identity):
                continue
            error = UnauthenticatedError(
                "the credentials of the stream have expired, or were taken back or changed",
                metadata={"label": "EXPIRED_CREDENTIALS"},
            )
            if call.end is not None:
                call.end(error)
            elif call.state is CallState.IDLE:
                self._abort_later(call, error)

    async def _return_memory(self) -> None:
        """Return the memory of calls that have ended to the system; malloc would keep it."""
        held = self._limits.held_bytes
        self._held_bytes_max = max(self._held_bytes_max, held)
        if self._held_bytes_max > _BURST_BYTES and held < self._held_bytes_max // 4:
            self._held_bytes_max = held
            await asyncio.to_thread(trim_memory)

    def _give_way(self, now: float) -> list[tuple["asyncio.Task[Any]", OpenCall]]:
        """Choose slow calls of callers whose other calls wait for the room of these."""
        limits = self._limits
        chosen = []
        for budget, state, least_s in (
            (limits.requests, CallState.RECEIVING, _RECEIVE_S_MIN),
            (limits.small_requests, CallState.RECEIVING, _RECEIVE_S_MIN),
            (limits.streams, CallState.IDLE, _IDLE_S_MIN),
            (limits.responses, CallState.RESPONDING, READ_S_MIN),
        ):
            receiving = state is CallState.RECEIVING
            waiting: Counter[str] = Counter()
            for holder, count in budget.waiting(since=now - _RECEIVE_S_MIN).items():
                waiting[holder.caller] += count
            if not waiting:
                continue
            # Oldest first.
            for task, call in self._calls.by_task():
                caller = call.holder.caller
                if (
                    call.state is state
                    and (not receiving or call.is_receiving_from(budget))
                    and now - call.since >= least_s
                    and call.until > now
                    and waiting[caller]
                ):
                    waiting[caller] -= 1
                    chosen.append((task, call))
        return chosen

    def _reason(self, call: OpenCall, now: float) -> EngineError:
        """Return why the server ends a call that waits for a message of its client."""
        if call.state is CallState.IDLE and call.until > now:
            return OverloadedError(
                f"the client sent no message for {now - call.since:.1f} s, and other streams wait"
                " to be read",
                retry_delay_s=RETRY_DELAY_S,
                metadata={"label": "STREAM_GAVE_WAY"},
            )
        if call.state is not CallState.RECEIVING:
            return DeadlineExpiredError(
                f"the client sent no message for {self._limits.settings.stream_idle_timeout_s:g} s",
                metadata={"label": "STREAM_IDLE"},
            )
        if call.until <= now:
            limit = f"{self._limits.settings.max_receive_s:g}"
            return DeadlineExpiredError(
                f"the message did not come in whole within {limit} s",
                metadata={"label": "MESSAGE_TOO_SLOW", "limitSeconds": limit},
            )
        return OverloadedError(
            f"the message did not come in whole within {now - call.since:.1f} s, and others wait"
            " to be received",
            retry_delay_s=RETRY_DELAY_S,
            metadata={"label": "MESSAGE_TOO_SLOW"},
        )

    def _abort_later(self, call: OpenCall, error: EngineError) -> None:
        async def abort() -> None:
            if call.state is not CallState.ENDING:
                # The message came in at the last moment.
                return
            try:
                await call.abort(error)
            except (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError) as ended:
                # The read that the call's task waits in raises it there, too.
                forget_frames(ended)

        call.begin_abort()
        task = asyncio.create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


async def _end_at_once(tasks: list["asyncio.Task[Any]"]) -> None:
    """End calls whose clients do not read their responses.

    gRPC cannot do that: it sends a status only behind what was written before. But its core ends
    a call once the last reference to the call's object is gone. Two tasks hold one: that of the
    handler, and one that waits for the end of the call.
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
    # One line for all of them, and none of gRPC's.
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait(tasks, timeout=CANCELLATION_S_MAX)
