"""The error for each gRPC status."""

import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from embedgrpc.client.errors import (
    ERRORS_BY_REASON,
    BackendUnavailableError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    ShuttingDownError,
    UnauthenticatedError,
    UnsupportedError,
)
from embedgrpc.client.request_limit import too_large_error
from embedgrpc.v1 import common_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_DIGITS_MAX = 10
_DOMAIN = "embedgrpc"
# grpc.aio's details where it sends a message while the server ends the stream. The status that the
# server sent is lost: the connection broke, the server has no bug.
_STATUS_LOST = "Internal error from Core"
# The end of a call whose server is gone, or that a proxy or a stopping server cancels.
_RESUMABLE_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
# gRPC's texts for a connection that broke, with codes that have other meanings, too.
_BROKEN_CODES = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})
_BROKEN = re.compile(r"RST_STREAM|stream removed|connection reset", re.IGNORECASE)
_REASON_PREFIX = "ERROR_REASON_"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# For a status without a reason of the contract: from gRPC itself, a proxy or another server.
_ERRORS_BY_CODE: dict[grpc.StatusCode, type[EmbedGrpcError]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionFailedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExpiredError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}
# For a reason of a newer contract.
_ERRORS_OF_NEW_REASONS: dict[grpc.StatusCode, type[EmbedGrpcError]] = _ERRORS_BY_CODE | {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: UnsupportedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: BackendUnavailableError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_of_call(failure: Any) -> EmbedGrpcError:
    """Return the most specific error for a call that failed.

    Args:
        failure: The `grpc.RpcError` that the call raised, with `grpc` or `grpc.aio`.
    """
    code: grpc.StatusCode = failure.code()
    if is_status_lost(failure):
        return ConnectionFailedError("the server ended the stream while the client sent a message")
    details = list(_details(failure))
    # gRPC's core answers a message that is too large, without details.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not details:
        too_large = too_large_error(failure.details() or "")
        if too_large is not None:
            return too_large
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_delay_s: float | None = None
    for detail in details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations += [
                FieldViolation(each.field, each.description, each.reason)
                for each in request.field_violations
            ]
        elif detail.Unpack(retry):
            retry_delay_s = _seconds(retry.retry_delay)
    return _error_class(reason, code)(
        failure.details() or "",
        code=code,
        reason=reason,
        metadata=metadata,
        field_violations=tuple(violations),
        retry_delay_s=retry_delay_s,
    )


def overload_delay_s(failure: Any, *, default_s: float) -> float | None:
    """Return the wait before a retry of an overloaded call, in seconds.

    Args:
        failure: The `grpc.RpcError` that the call raised.
        default_s: The wait where the server sent none.

    Returns:
        The wait; None where the server forbids a retry, or is not overloaded. A message that is
        too large has the same status: gRPC's core sends it without reason and pushback.
    """
    if failure.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    # Of pairs: gRPC's own class of metadata was half a mapping before 1.64.
    pushback = dict(tuple(failure.trailing_metadata() or ())).get(_PUSHBACK_KEY)
    if pushback is not None:
        # Anything but a number forbids a retry, too: gRFC A6.
        is_delay = (
            isinstance(pushback, str) and pushback.isdecimal() and len(pushback) < _DIGITS_MAX
        )
        return int(pushback) / 1000 if is_delay else None
    error = error_of_call(failure)
    if not error.reason:
        return None
    return default_s if error.retry_delay_s is None else error.retry_delay_s


def is_status_lost(failure: Any) -> bool:
    """Return whether gRPC lost the status that the server sent; see `_STATUS_LOST`."""
    return failure.code() is grpc.StatusCode.INTERNAL and failure.details() == _STATUS_LOST


def is_resumable(error: EmbedGrpcError, *, begun: bool) -> bool:
    """Return whether another call may go on with a stream that ended with an error.

    Args:
        error: The error.
        begun: Whether a server has accepted the stream before. If not, a connection that fails is
            more likely a wrong address than a restart.
    """
    if isinstance(error, ShuttingDownError):
        return True
    if not begun:
        return False
    if error.code in _RESUMABLE_CODES or isinstance(error, OverloadedError | RateLimitedError):
        return True
    return error.code in _BROKEN_CODES and _BROKEN.search(error.message) is not None


def error_of_item(item: common_pb2.ItemError) -> EmbedGrpcError:
    """Return the most specific error for one item of a call."""
    code = _CODES.get(item.code, grpc.StatusCode.UNKNOWN)
    name = str(item.reason)  # of a newer contract
    if item.reason in common_pb2.ErrorReason.values():
        name = common_pb2.ErrorReason.Name(item.reason).removeprefix(_REASON_PREFIX)
    return _error_class(name, code)(
        item.message,
        code=code,
        reason=name if item.reason else "",
        metadata=item.metadata,
        retry_delay_s=_seconds(item.retry_delay) if item.HasField("retry_delay") else None,
    )


def _error_class(reason: str, code: grpc.StatusCode) -> type[EmbedGrpcError]:
    if not reason:
        return _ERRORS_BY_CODE.get(code, EmbedGrpcError)
    return ERRORS_BY_REASON.get(reason) or _ERRORS_OF_NEW_REASONS.get(code, EmbedGrpcError)


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _details(failure: Any) -> list[Any]:
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                return []  # of another kind of server; code and message are still right
            return list(status.details)
    return []
