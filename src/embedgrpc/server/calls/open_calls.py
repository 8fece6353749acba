"""The registry of open calls. Each gets its place here, and leaves when its task has ended."""

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.caller import Need, Scope, anonymous, set_current_caller
from embedgrpc.server.calls.budget import Holder
from embedgrpc.server.calls.call_limits import CallLimits
from embedgrpc.server.calls.call_metadata import caller_of
from embedgrpc.server.calls.open_call import RETRY_DELAY_S, OpenCall, set_current_call
from embedgrpc.server.identity.authenticator import Authenticator
from embedgrpc.server.settings.settings import Settings

_KNOWN_CONNECTIONS_MAX = 16_384


# A connection that was forgotten while it had calls would have two shares for a while.
@lru_cache(_KNOWN_CONNECTIONS_MAX)
def _holder(caller: str, connection: str) -> Holder:
    return Holder(caller, connection)


class OpenCalls:
    """All open calls. For one event loop.

    Attributes:
        limits: What the calls may hold together.
        authenticator: Finds out who calls; None where nobody needs credentials.
    """

    def __init__(self, settings: Settings, *, message_bytes_max: int | None = None) -> None:
        self.limits = CallLimits(settings, message_bytes_max=message_bytes_max)
        self.authenticator: Authenticator | None = None
        self._caller_metadata = settings.caller_metadata
        self._public: frozenset[str] = frozenset(settings.public)
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
        caller = anonymous(caller_of(context, self._caller_metadata))
        holder = _holder(caller.name, context.peer())
        call = self._open[task] = kind(self.limits, caller, holder, context)
        task.add_done_callback(self._closed)
        set_current_call(call)
        set_current_caller(caller)
        return call

    async def admit(self, call: OpenCall, need: Need) -> None:
        """Find out who makes a call, and whether they may. For every door, before it reads a body.

        Without an authenticator callers are anonymous, and may do everything but administrate.

        Args:
            call: The running call, which has taken nothing yet.
            need: What the call needs.

        Raises:
            UnauthenticatedError: The caller did not prove who it is.
            PermissionDeniedError: The caller may not make this call.
            BackendUnavailableError: Its token cannot be checked now.
        """
        if need.is_public or need.public_as in self._public:
            return
        if self.authenticator is not None:
            identity = await self.authenticator.identify(call.context)
            caller = identity.caller
            call.identify(identity, _holder(caller.name, call.holder.connection))
            set_current_caller(caller)
            caller.check(need)
        elif need.scope is Scope.ADMIN:
            call.caller.check(need)

    def take_place(self, call: OpenCall) -> None:
        """Give a call its place.

        Raises:
            OverloadedError: The caller has too many open calls, given those of others.
        """
        places = self.limits.places
        call.placed = places.try_take(call.holder, 1)
        if not call.placed:
            raise OverloadedError(
                f"too many calls are open; the server takes {places.total}, shared between"
                " its callers",
                retry_delay_s=RETRY_DELAY_S,
                metadata={"label": "TOO_MANY_CALLS", "limit": str(places.total)},
            )

    def _closed(self, task: "asyncio.Task[Any]") -> None:
        self._open.pop(task).close()
