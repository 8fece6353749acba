"""One open call: what it is doing, what it holds, and until when it may.

A call holds a place; the bytes of its request, from before they come in until it is answered; and
the bytes of its response, from before they are made until its client has read them.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any

from embedgrpc.engine.errors import EngineError, OverloadedError
from embedgrpc.engine.work import Meter
from embedgrpc.server.caller import Caller
from embedgrpc.server.calls.budget import Budget, Holder
from embedgrpc.server.calls.call_limits import REQUEST_COPIES, RESPONSE_COPIES, CallLimits
from embedgrpc.server.identity.authenticator import Identity
from embedgrpc.server.rates.account import Account, estimate_tokens
from embedgrpc.server.rpc.errors import Metadata, message_of, status_code, trailing_metadata
from embedgrpc.server.rpc.request_id import REQUEST_ID_KEY, find_request_id
from embedgrpc.server.telemetry.call_record import CallRecord

# How long a client always gets to read a unary response.
READ_S_MIN = 5.0
# How long gRPC may take to send a status: it waits behind a response that is not read.
_ABORT_S_MAX = 5.0
# How long gRPC may take to report the end of a call.
CANCELLATION_S_MAX = 1.0
RETRY_DELAY_S = 1.0


class CallState(Enum):
    """What a call is doing."""

    WORKING = auto()
    # Its first message comes in.
    RECEIVING = auto()
    # The client of a stream sends nothing.
    IDLE = auto()
    RESPONDING = auto()
    ENDING = auto()


class OpenCall:
    """A call, from the start of its handler until gRPC has finished it.

    Attributes:
        account: What its caller may still use; None without limits.
        caller: Who called; without any rights of its own until the call is admitted.
        holder: What holds the parts of budgets that the call takes.
        identity: What proved who called; None where nothing did.
        end: Ends the call in good order, where it can do that.
        context: gRPC's context of the call.
        metadata: What its client sent before any message; gRPC makes a copy at every question.
        record: What logs and metrics say of it.
        request_id: The id that the caller gave it; may be empty.
        placed: Whether it holds a place.
        state: What it is doing.
        since: When it began to do that, on the monotonic clock.
        until: When the server ends it if it still does that.
    """

    __slots__ = (
        "_began",
        "_held_tokens",
        "_is_stream",
        "_limits",
        "_reads_texts",
        "_request_bytes",
        "_requests",
        "_response_bytes",
        "_stream_bytes",
        "account",
        "caller",
        "context",
        "end",
        "holder",
        "identity",
        "metadata",
        "placed",
        "record",
        "request_id",
        "since",
        "state",
        "until",
    )

    def __init__(
        self,
        limits: CallLimits,
        caller: Caller,
        holder: Holder,
        context: Any,
        record: CallRecord,
    ) -> None:
        self._limits = limits
        self._requests = limits.requests
        self._request_bytes = self._stream_bytes = self._response_bytes = 0
        self.caller = caller
        self.account: Account | None = None
        self._held_tokens = 0
        self._is_stream = False
        self._reads_texts = False
        self.holder = holder
        self.identity: Identity | None = None
        self.end: Callable[[EngineError], None] | None = None
        self.context = context
        self.record = record
        self.metadata: Metadata = context.invocation_metadata() or ()
        self.request_id = find_request_id(self.metadata)
        if self.request_id:
            context.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id),))
        self.placed = False
        self._enter(CallState.WORKING)
        self._began = self.since

    def _enter(self, state: CallState, limit_s: float = math.inf) -> None:
        self.state = state
        self.since = time.monotonic()
        self.until = self.since + limit_s

    def identify(self, identity: Identity, holder: Holder) -> None:
        """Record who called, before the call takes anything."""
        self.identity, self.caller, self.holder = identity, identity.caller, holder

    def count_request(self, *, reads_texts: bool) -> None:
        """Count a unary call against the limits of its caller.

        Args:
            reads_texts: Whether a model may read what is in its message.

        Raises:
            RateLimitedError: The caller exceeds one of them.
        """
        if self.account is not None:
            self._reads_texts = reads_texts
            self.account.take_request(has_tokens=reads_texts)

    async def wait_for_request(self, *, reads_texts: bool) -> None:
        """Wait until the limits of the caller have room for this stream, and count it.

        Args:
            reads_texts: Whether a model may read what is in its messages.

        Raises:
            RateLimitedError: The caller has too many open calls, or they have no room in time.
        """
        self._is_stream = True
        self._reads_texts = reads_texts
        if self.account is None:
            return
        self.account.count_call()
        # As long as its client may be silent.
        limit_s = self._limits.settings.stream_idle_timeout_s
        if self.account.stream_wait_s(has_tokens=reads_texts) > limit_s:
            raise self.account.refuse_stream(has_tokens=reads_texts)
        try:
            async with asyncio.timeout(limit_s):
                await self.account.wait_for_turn(has_tokens=reads_texts)
        except TimeoutError:
            raise self.account.refuse_stream(has_tokens=reads_texts) from None

    def use_small_messages(self) -> None:
        """Receive from a separate budget, which calls with texts do not use.

        For methods whose messages are small, such as health checks: a client may still send them
        part of a large message.
        """
        self._requests = self._limits.small_requests

    @property
    def meter(self) -> Meter | None:
        """What counts the tokens that models read for it; None where its caller has no limit."""
        return self.account if self.account is not None and self.account.counts_tokens else None

    @property
    def waits_for_client(self) -> bool:
        """Whether it waits for a message of its client, and not for room to receive it."""
        return self.state in (CallState.RECEIVING, CallState.IDLE)

    @property
    def request_bytes(self) -> int:
        """The size of the messages that it works on."""
        return self._request_bytes // REQUEST_COPIES

    def is_receiving_from(self, budget: Budget) -> bool:
        """Return whether its message comes in, and counts against a budget."""
        return self.state is CallState.RECEIVING and self._requests is budget

    async def read_first(self) -> Any:
        """Read the first message, in bytes; gRPC's EOF where there is none.

        Raises:
            OverloadedError: Messages of other calls leave no room for it.
            RateLimitedError: Its caller has not so many tokens left.
            grpc.aio.AbortError: It did not come in time; the client has the status.
        """
        limits, requests, size = self._limits, self._requests, self._limits.message_bytes
        if not await self._find_room(requests, size):
            raise OverloadedError(
                "other requests left no room to receive this one for"
                f" {limits.settings.max_queue_s:g} s",
                retry_delay_s=RETRY_DELAY_S,
                metadata={"label": "NO_ROOM_TO_RECEIVE"},
            )
        self._request_bytes = size
        self._enter(CallState.RECEIVING, limits.settings.max_receive_s)
        message = await self.context.read()
        self._enter(CallState.WORKING)
        held = len(message) * REQUEST_COPIES if isinstance(message, bytes) else 0
        self._request_bytes = held
        _adjust(requests, self.holder, held - size)
        if held and self.account is not None:
            self._hold_tokens(self.account, len(message))
        return message

    def _hold_tokens(self, account: Account, size: int) -> None:
        """Take the estimated tokens of a message that has come in.

        Raises:
            RateLimitedError: It is that of a unary call, and there are not so many left.
        """
        if not self._reads_texts:
            return
        tokens = estimate_tokens(size)
        if self._is_stream:
            account.force(tokens)
        else:
            account.hold(tokens)
        self._held_tokens += tokens

    def _release_tokens(self, tokens: int) -> None:
        if self.account is not None and tokens:
            self._held_tokens -= tokens
            self.account.release(tokens)

    async def _find_room(self, budget: Budget, amount: int) -> bool:
        """Take an amount as soon as there is room; return False if there is none in time."""
        if budget.try_take(self.holder, amount):
            return True
        try:
            async with asyncio.timeout(self._limits.settings.max_queue_s):
                await budget.take(self.holder, amount)
        except TimeoutError:
            return False
        return True

    def release_unary_request(self) -> None:
        """Release the message of a unary call, which is no longer needed."""
        if self._request_bytes:
            self._requests.give_back(self.holder, self._request_bytes)
            self._request_bytes = 0
        self._release_tokens(self._held_tokens)

    async def read_next(self, *, idle_timeout_s: float) -> Any:
        """Read a message of a stream after the first, in bytes; gRPC's EOF after the last.

        Args:
            idle_timeout_s: How long the client may send none; infinity where the handler checks.
        """
        limits = self._limits
        # While the earlier messages of this client fill the budget, this one stays unread.
        await limits.requests.take(self.holder, limits.message_bytes)
        limits.requests.give_back(self.holder, limits.message_bytes)
        await limits.streams.take(self.holder, limits.waiting_bytes)
        self._stream_bytes = limits.waiting_bytes
        try:
            self._enter(CallState.IDLE, idle_timeout_s)
            message = await self.context.read()
        finally:
            if self.state is CallState.IDLE:
                self._enter(CallState.WORKING)
            reserved, self._stream_bytes = self._stream_bytes, 0
            if reserved:
                limits.streams.give_back(self.holder, reserved)
        if self.account is not None and isinstance(message, bytes):
            # Only now: the end of a stream needs no turn. Meanwhile nothing more is read.
            self._hold_bytes(len(message))
            try:
                await self.account.wait_for_turn(has_tokens=self._reads_texts)
            finally:
                self._hold_bytes(-len(message))
        return message

    def hold_stream_request(self, size: int) -> None:
        """Count a message of a stream that has been received."""
        self._hold_bytes(size)
        if self.account is not None:
            self._hold_tokens(self.account, size)

    def _hold_bytes(self, size: int) -> None:
        held = size * REQUEST_COPIES
        self._request_bytes += held
        _adjust(self._requests, self.holder, held)

    def release_stream_request(self, size: int) -> None:
        """Release a part of the messages of a stream, which is no longer needed."""
        self._hold_bytes(-size)
        self._release_tokens(min(estimate_tokens(size), self._held_tokens))

    async def reserve_unary_response(self, size: int) -> None:
        """Wait until there is room for the response of a unary call, before it is made.

        Raises:
            OverloadedError: Responses of other calls leave no room for it.
        """
        limits = self._limits
        reserved = limits.responses.largest(size * RESPONSE_COPIES)
        if not await self._find_room(limits.responses, reserved):
            raise OverloadedError(
                f"other responses left no room for this one, of up to {size} bytes, for"
                f" {limits.settings.max_queue_s:g} s",
                retry_delay_s=RETRY_DELAY_S,
                metadata={"label": "NO_ROOM_FOR_ANSWER"},
            )
        self._response_bytes += reserved

    async def reserve_stream_response(self, size: int) -> int:
        """Wait until there is room for a response of a stream, before it is made.

        Returns:
            The bytes that are reserved, to be released once the client has read it.
        """
        reserved = min(size, self._limits.stream_response_bytes_max)
        await self._limits.responses.take(self.holder, reserved)
        self._response_bytes += reserved
        return reserved

    def release_stream_response(self, reserved: int) -> None:
        """Release what was reserved for a response that the client has read."""
        self._response_bytes -= reserved
        self._limits.responses.give_back(self.holder, reserved)

    async def write(self, message: Any) -> None:
        """Write a message of a stream that is not a `BidiStream`; end a client that is too slow."""
        self._enter(CallState.RESPONDING, self._limits.settings.stream_idle_timeout_s)
        await self.context.write(message)
        self._enter(CallState.WORKING)

    def begin_unary_response(self, size: int) -> None:
        """Count the bytes of the response that gRPC is about to send, in place of its estimate."""
        held = size * RESPONSE_COPIES
        _adjust(self._limits.responses, self.holder, held - self._response_bytes)
        self._response_bytes = held
        self.release_unary_request()
        self._enter(CallState.RESPONDING, READ_S_MIN)
        self.until = max(self.until, self._began + self._limits.settings.max_unary_s)
        self.tell_rates()

    def tell_rates(self) -> None:
        """Tell the client what its caller may use, and what is left, with the end of the call."""
        if self.account is not None:
            metadata = self.account.figures()
            if self.request_id:
                metadata = (*metadata, (REQUEST_ID_KEY, self.request_id))
            self.context.set_trailing_metadata(metadata)

    def begin_abort(self) -> None:
        """Mark the call as ended by the server, so that it is ended once."""
        self._enter(CallState.ENDING, _ABORT_S_MAX)

    async def abort(self, error: EngineError) -> None:
        """Send the client the status of a failure.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self.begin_abort()
        # The figures below, and the next call of this caller, must not count them.
        self._release_tokens(self._held_tokens)
        details = trailing_metadata(error, request_id=self.request_id)
        code = status_code(error)
        self.record.fail(error, code.name)
        if self.account is not None:
            details = (*details, *self.account.figures())
        await self.context.abort(code, message_of(error), details)

    async def wait_for_cancellation(self) -> None:
        """Wait for gRPC to cancel a call whose client has left, or reads nothing.

        gRPC reports a cancellation a moment after a write has failed. That the client has left
        is no incident.
        """
        self._enter(CallState.ENDING, CANCELLATION_S_MAX)
        await asyncio.Event().wait()

    def close(self) -> None:
        """Release everything that it holds."""
        limits = self._limits
        if self.placed:
            limits.places.give_back(self.holder, 1)
        if self._request_bytes:
            self._requests.give_back(self.holder, self._request_bytes)
        if self._stream_bytes:
            limits.streams.give_back(self.holder, self._stream_bytes)
        if self._response_bytes:
            limits.responses.give_back(self.holder, self._response_bytes)
        if self.account is not None:
            self._release_tokens(self._held_tokens)
            self.account.leave()
        self.placed = False
        self._request_bytes = self._stream_bytes = self._response_bytes = 0
        # A cancelled timer keeps this call, as part of its context, for a while.
        self.context = self.end = self.record.metadata = None
        self.metadata = ()


def _adjust(budget: Budget, holder: Holder, amount: int) -> None:
    """Take more that is in use already, or give back what is not."""
    if amount > 0:
        budget.force(holder, amount)
    elif amount:
        budget.give_back(holder, -amount)


_current: ContextVar[OpenCall | None] = ContextVar("open_call", default=None)


def set_current_call(call: OpenCall) -> None:
    """Make a call the one of the running task and of the tasks that it starts."""
    _current.set(call)


def current_call() -> OpenCall | None:
    """Return the call of the running task."""
    return _current.get()


def request_id_field() -> dict[str, str]:
    """Return the log field with the request id of the running call, if it has one."""
    call = _current.get()
    return {"request_id": call.request_id} if call is not None and call.request_id else {}


async def reserve_response(size: int) -> None:
    """Wait until there is room for the response of the running unary call, in bytes."""
    call = _current.get()
    if call is not None:
        await call.reserve_unary_response(size)


async def write(context: Any, message: Any) -> None:
    """Write a message of the running call; end the call if its client does not read it."""
    call = _current.get()
    await (context if call is None else call).write(message)
