"""Reads what applies to a whole call: its deadline, its caller, its work class."""

import math
import time
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.open_call import current_call
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_work
from embedgrpc.server.telemetry.tracing import current_context, forwarded_context
from embedgrpc.v1 import common_pb2

# The most digits of a number in metadata.
_DIGITS_MAX = 11
# Each is the other end of a connection.
_KNOWN_PEERS_MAX = 4096
# What gRPC clients accept by default.
_CLIENT_RESPONSE_BYTES = 4 * 1024 * 1024
_CLIENT_RESPONSE_BYTES_KEY = "embedgrpc-max-response-bytes"
WORK_CLASS_KEY = "embedgrpc-work-class"
_WORK_CLASSES: dict[str | bytes, WorkClass] = {one.name.lower(): one for one in WorkClass}
_PRIORITIES: dict[int, WorkClass] = {
    common_pb2.PRIORITY_INTERACTIVE: WorkClass.INTERACTIVE,
    common_pb2.PRIORITY_BULK: WorkClass.BULK,
}


def begin_call(
    context: Any,
    work_class: WorkClass,
    settings: Settings,
    *,
    priority: int,
    field: str,
    max_s: float = math.inf,
) -> Call:
    """Read what applies to the whole call; the deadline once, on the monotonic clock.

    Args:
        context: The RPC's context.
        work_class: Interactive for unary calls, bulk for streams; the metadata
            `embedgrpc-work-class` overrides it.
        settings: Name the metadata that identifies callers.
        priority: The request's `Priority`, which overrides both.
        field: Where it stands in the request.
        max_s: The server's own limit.

    Raises:
        InvalidRequestError: The metadata or the request has an unknown work class.
    """
    remaining_s = context.time_remaining()
    limit_s = max_s if remaining_s is None else min(remaining_s, max_s)
    open_call = current_call()
    named = find_metadata(context, WORK_CLASS_KEY)
    if named is not None:
        if named not in _WORK_CLASSES:
            raise InvalidRequestError(
                f"metadata {WORK_CLASS_KEY} is {show_name(str(named))}; it must be interactive or"
                " bulk",
                field=WORK_CLASS_KEY,
            )
        work_class = _WORK_CLASSES[named]
    check_enum(common_pb2.Priority, priority, field=field)
    call = Call(
        work_class=_PRIORITIES.get(priority, work_class),
        deadline=time.monotonic() + limit_s,
        caller=open_call.caller.name
        if open_call is not None
        else caller_of(context, settings.caller_metadata, context.peer()),
        trace=current_context(),
        forwarded=forwarded_context(),
        meter=open_call.meter if open_call is not None else None,
    )
    note_work(call)
    return call


def caller_of(context: Any, key: str, peer: str) -> str:
    """Return the caller: what a trusted proxy says, or else the address without its port.

    So a client gets no larger share by opening more connections.
    """
    named = find_metadata(context, key) if key else None
    if named:
        return named if isinstance(named, str) else named.hex()
    return _address(peer)


@lru_cache(_KNOWN_PEERS_MAX)
def _address(peer: str) -> str:
    peer = unquote(peer)
    return peer.rpartition(":")[0] or peer


def find_metadata(context: Any, wanted: str) -> str | bytes | None:
    """Return the first value of a key of a call's metadata; None without one."""
    call = current_call()
    if call is not None and call.context is context:
        metadata = call.metadata
    else:
        metadata = context.invocation_metadata() or ()
    for key, value in metadata:
        if key == wanted:
            found: str | bytes = value
            return found
    return None


def client_response_bytes(
    context: Any,
    asked: int,
    *,
    field: str = "max_response_bytes",
    default: int = _CLIENT_RESPONSE_BYTES,
) -> int:
    """Return the size of the largest response that the client accepts.

    Args:
        context: The RPC's context, whose metadata may say it.
        asked: What the request says; 0 for nothing.
        field: Where it stands in the request.
        default: What clients accept that do not say it.

    Raises:
        InvalidRequestError: The number is negative, or the metadata has no number.
    """
    check_not_negative(asked, field=field)
    if asked:
        return asked
    value = find_metadata(context, _CLIENT_RESPONSE_BYTES_KEY)
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS_MAX:
        return int(value)
    raise InvalidRequestError(
        f"metadata {_CLIENT_RESPONSE_BYTES_KEY} is not a number of bytes",
        field=_CLIENT_RESPONSE_BYTES_KEY,
    )
