"""Reads what holds for a whole call: its deadline, its caller, its class of work."""

import math
import time
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import current_context, forwarded_context

# Of a number that somebody else writes.
_DIGITS_MAX = 11
# Each is the end of a connection.
_KNOWN_PEERS_MAX = 4096
# What a gRPC client accepts unless it was told otherwise.
_CLIENT_RESPONSE_BYTES = 4 * 1024 * 1024
# How a call says how soon its answer is needed.
_WORK_CLASS_KEY = "embedgrpc-work-class"
_WORK_CLASSES: dict[str | bytes, WorkClass] = {one.name.lower(): one for one in WorkClass}
# How a client that accepts more, or less, says so.
_CLIENT_RESPONSE_BYTES_KEY = "embedgrpc-max-response-bytes"


def begin_call(
    context: Any, work_class: WorkClass, settings: Settings, *, max_s: float = math.inf
) -> Call:
    """Reads what holds for the whole RPC: the deadline once, on a clock that does not step.

    Args:
        context: The RPC's context.
        work_class: Interactive for unary calls, bulk for streams, unless the metadata
            `embedgrpc-work-class` says otherwise.
        settings: Tell how callers are told apart.
        max_s: The server's own limit.

    Raises:
        InvalidRequestError: The metadata names no class.
    """
    remaining_s = context.time_remaining()
    limit_s = max_s if remaining_s is None else min(remaining_s, max_s)
    named = _metadata(context, _WORK_CLASS_KEY)
    if named is not None and named not in _WORK_CLASSES:
        raise InvalidRequestError(
            f"metadata {_WORK_CLASS_KEY}, of {len(named)} characters, is neither interactive nor"
            " bulk",
            field=_WORK_CLASS_KEY,
        )
    return Call(
        work_class=work_class if named is None else _WORK_CLASSES[named],
        deadline=time.monotonic() + limit_s,
        caller=caller_of(context, settings.caller_metadata),
        trace=current_context(),
        forwarded=forwarded_context(),
    )


def caller_of(context: Any, key: str) -> str:
    """Tells who calls: what a trusted proxy says, or else the address, without its port.

    Whoever opens more connections gets no more of the machine.
    """
    named = _metadata(context, key) if key else None
    if named:
        return named if isinstance(named, str) else named.hex()
    return _address(context.peer())


@lru_cache(_KNOWN_PEERS_MAX)
def _address(peer: str) -> str:
    peer = unquote(peer)
    return peer.rpartition(":")[0] or peer


def _metadata(context: Any, wanted: str) -> str | bytes | None:
    for key, value in context.invocation_metadata() or ():
        if key == wanted:
            found: str | bytes = value
            return found
    return None


def client_response_bytes(context: Any) -> int:
    """Tells how large an answer the client accepts."""
    value = _metadata(context, _CLIENT_RESPONSE_BYTES_KEY)
    if value is None:
        return _CLIENT_RESPONSE_BYTES
    if isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS_MAX:
        return int(value)
    raise InvalidRequestError(
        f"metadata {_CLIENT_RESPONSE_BYTES_KEY} is not a number of bytes",
        field=_CLIENT_RESPONSE_BYTES_KEY,
    )
