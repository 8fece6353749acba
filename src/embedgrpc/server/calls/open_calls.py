"""The registry of open calls. Each gets its place here, and leaves when its task has ended."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import grpc

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.caller import Need, Scope, anonymous, set_current_caller
from embedgrpc.server.calls.budget import Holder
from embedgrpc.server.calls.call_limits import CallLimits
from embedgrpc.server.calls.call_metadata import caller_of
from embedgrpc.server.calls.open_call import RETRY_DELAY_S, OpenCall, set_current_call
from embedgrpc.server.identity.authenticator import Authenticator
from embedgrpc.server.rates.account import Account
from embedgrpc.server.rates.limits import default_limits
from embedgrpc.server.rates.rates import Rates
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import DOORS, CallRecord, set_current_record
from embedgrpc.server.telemetry.metrics import Reading
from embedgrpc.server.telemetry.tracing import current_context

_logger = logging.getLogger(__name__)

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
        rates: What each caller may use.
        observers: Each is called once for every call, when it ends; its record is complete then.
            On the event loop; they must be quick.
    """

    def __init__(self, settings: Settings, *, message_bytes_max: int | None = None) -> None:
        self.limits = CallLimits(settings, message_bytes_max=message_bytes_max)
        self.authenticator: Authenticator | None = None
        self.rates = Rates(default_limits(settings))
        self.observers: list[Callable[[OpenCall], None]] = []
        self._caller_metadata = settings.caller_metadata
        self._public: frozenset[str] = frozenset(settings.public)
        # Only where nobody else can reach the server: the settings see to that.
        self._admin_is_open = settings.admin and not settings.identifies_callers
        self._open: dict[asyncio.Task[Any], OpenCall] = {}

    def __len__(self) -> int:
        return len(self._open)

    def by_task(self) -> Iterable[tuple["asyncio.Task[Any]", OpenCall]]:
        """Return the calls with their tasks, oldest first."""
        return self._open.items()

    def read(self) -> Iterator[Reading]:
        """Return how many calls are open. From any thread."""
        calls = self._open.copy().values()
        counts = Counter(one.record.door for one in calls if not one.record.is_probe)
        for door in DOORS:
            yield Reading("embedgrpc.calls.open", counts[door], {"door": door})

    def open(self, context: Any, record: CallRecord, kind: type[OpenCall] = OpenCall) -> OpenCall:
        """Register the call of the running task until that task has ended.

        Args:
            context: The context of the call: gRPC's, or what stands for it.
            record: What logs and metrics will say of it.
            kind: The class of the call.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        peer = context.peer()
        name = caller_of(context, self._caller_metadata, peer)
        caller = anonymous(name, has_rights=self.authenticator is None)
        holder = _holder(caller.name, peer)
        call = self._open[task] = kind(self.limits, caller, holder, context, record)
        record.span = current_context()
        record.metadata = context.invocation_metadata
        task.add_done_callback(self._closed)
        set_current_call(call)
        set_current_caller(caller)
        set_current_record(record)
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
        elif need.scope is Scope.ADMIN and not self._admin_is_open:
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

    def count_request(self, call: OpenCall, need: Need, *, reads_texts: bool) -> None:
        """Count a unary call against the limits of its caller, before its message is received.

        Probes, and calls that need a scope, such as for metrics, do not count.

        Args:
            call: The call.
            need: What it needs.
            reads_texts: Whether a model may read what is in its message.

        Raises:
            RateLimitedError: The caller exceeds one of them.
        """
        if self._enter_account(call, need) is not None:
            call.count_request(reads_texts=reads_texts)

    async def wait_for_request(self, call: OpenCall, need: Need, *, reads_texts: bool) -> None:
        """Count a stream against the limits of its caller, as soon as they have room for it.

        Args:
            call: The call.
            need: What it needs.
            reads_texts: Whether a model may read what is in its messages.

        Raises:
            RateLimitedError: The caller has too many open calls, or they have no room in time.
        """
        if self._enter_account(call, need) is not None:
            await call.wait_for_request(reads_texts=reads_texts)

    def change_rates(self, settings: Settings) -> None:
        """Follow changed settings of the limits of single callers, for open streams too."""
        in_use = [
            (call.account, call.caller) for call in self._open.values() if call.account is not None
        ]
        self.rates.change(default_limits(settings), in_use)

    def _enter_account(self, call: OpenCall, need: Need) -> Account | None:
        if need.is_public or need.scope is not None:
            return None
        account = call.account = self.rates.enter(call.caller)
        return account

    def _closed(self, task: "asyncio.Task[Any]") -> None:
        call = self._open.pop(task)
        record = call.record
        record.total_s = time.monotonic() - record.began_s
        if not record.status:
            record.status = _status_of(task, call.context)
        try:
            for observe in self.observers:
                observe(call)
        except Exception:
            _logger.exception("recording a call failed")
        finally:
            call.close()


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _status_of(task: "asyncio.Task[Any]", context: Any) -> str:
    """Return the status of a gRPC call that ended without a failure of ours."""
    code = context.code() if hasattr(context, "code") else 0
    if isinstance(code, grpc.StatusCode):
        return code.name
    # aio returns most codes as numbers, despite its annotation.
    if code:
        return _CODES.get(code, "UNKNOWN")
    return "CANCELLED" if task.cancelled() else "OK"
