"""The registry of open calls. Each gets its place here, and leaves when its task has ended."""

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.calls.budget import Caller
from embedgrpc.server.calls.call_limits import CallLimits
from embedgrpc.server.calls.call_metadata import caller_of
from embedgrpc.server.calls.open_call import RETRY_DELAY_S, OpenCall, set_current_call
from embedgrpc.server.rates.account import Account
from embedgrpc.server.rates.limits import default_limits
from embedgrpc.server.rates.rates import Rates
from embedgrpc.server.settings.settings import Settings

_KNOWN_CONNECTIONS_MAX = 16_384


# A connection that was forgotten while it had calls would have two shares for a while.
@lru_cache(_KNOWN_CONNECTIONS_MAX)
def _caller(address: str, connection: str) -> Caller:
    return Caller(address, connection)


class OpenCalls:
    """All open calls. For one event loop.

    Attributes:
        limits: What the calls may hold together.
        rates: What each caller may use.
    """

    def __init__(self, settings: Settings, *, message_bytes_max: int | None = None) -> None:
        self.limits = CallLimits(settings, message_bytes_max=message_bytes_max)
        self.rates = Rates(default_limits(settings))
        self._caller_metadata = settings.caller_metadata
        self._open: dict[asyncio.Task[Any], OpenCall] = {}

    def __len__(self) -> int:
        return len(self._open)

    def by_task(self) -> Iterable[tuple["asyncio.Task[Any]", OpenCall]]:
        """Return the calls with their tasks, oldest first."""
        return self._open.items()

    def open(self, context: Any, kind: type[OpenCall] = OpenCall) -> OpenCall:
        """Register the call of the running task until that task has ended.

        Args:
            context: The context of the call: gRPC's, or what stands for it.
            kind: The class of the call.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        caller = _caller(caller_of(context, self._caller_metadata), context.peer())
        call = self._open[task] = kind(self.limits, caller, context)
        task.add_done_callback(self._closed)
        set_current_call(call)
        return call

    def take_place(self, call: OpenCall) -> None:
        """Give a call its place.

        Raises:
            OverloadedError: The caller has too many open calls, given those of others.
        """
        places = self.limits.places
        call.placed = places.try_take(call.caller, 1)
        if not call.placed:
            raise OverloadedError(
                f"too many calls are open; the server takes {places.total}, shared between"
                " its callers",
                retry_delay_s=RETRY_DELAY_S,
                metadata={"label": "TOO_MANY_CALLS", "limit": str(places.total)},
            )

    def count_request(self, call: OpenCall, *, has_texts: bool) -> None:
        """Count a unary call against the limits of its caller, before its message is received.

        Args:
            call: The call.
            has_texts: Whether its message may hold texts.

        Raises:
            RateLimitedError: The caller exceeds one of them.
        """
        if self._enter_account(call) is not None:
            call.count_request(has_texts=has_texts)

    async def wait_for_request(self, call: OpenCall) -> None:
        """Count a stream against the limits of its caller, as soon as they have room for it.

        Raises:
            RateLimitedError: The caller has too many open calls, or they have no room in time.
        """
        if self._enter_account(call) is not None:
            await call.wait_for_request()

    def _enter_account(self, call: OpenCall) -> Account | None:
        account = call.account = self.rates.enter(call.caller.address)
        return account

    def _closed(self, task: "asyncio.Task[Any]") -> None:
        call = self._open.pop(task)
        call.close()
        if call.account is not None:
            self.rates.leave(call.account)
