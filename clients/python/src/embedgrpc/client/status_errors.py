"""The error for each gRPC status."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from embedgrpc.client.errors import (
    ERRORS_BY_REASON,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from embedgrpc.client.request_limit import too_large_error
from embedgrpc.v1 import common_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "embedgrpc"
# grpc.aio's details where it sends a message while the server ends the stream. The status that the
# server sent is lost: the connection broke, the server has no bug.
_STATUS_LOST = "Internal error from Core"
_REASON_PREFIX = "ERROR_REASON_"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# For a status without a reason of the contract: from gRPC itself, a proxy or another server.
_ERRORS_BY_CODE: dict[grpc.StatusCode, type[EmbedGrpcError]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionFailedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExpiredError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}


def error_of_call(failure: Any) -> EmbedGrpcError:
    """Return the most specific error for a call that failed.

    Args:
        failure: The `grpc.RpcError` that the call raised, with `grpc` or `grpc.aio`.
    """
    code: grpc.StatusCode = failure.code()
    if is_status_lost(failure):
        return ConnectionFailedError("the server ended the stream while the client sent a message")
    too_large = too_large_error(failure.details() or "")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and too_large is not None:
        return too_large
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[tuple[str, str]] = []
    retry_delay_s: float | None = None
    for detail in _details(failure):
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations += [(each.field, each.description) for each in request.field_violations]
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
    return _error_class(reason, code)(
        failure.details() or "",
        code=code,
        reason=reason,
        metadata=metadata,
        field_violations=tuple(violations),
        retry_delay_s=retry_delay_s,
    )


def is_status_lost(failure: Any) -> bool:
    """Return whether gRPC lost the status that the server sent; see `_STATUS_LOST`."""
    return failure.code() is grpc.StatusCode.INTERNAL and failure.details() == _STATUS_LOST


def error_of_item(item: common_pb2.ItemError) -> EmbedGrpcError:
    """Return the most specific error for one input of a stream."""
    code = _CODES.get(item.code, grpc.StatusCode.UNKNOWN)
    reason = ""
    if item.reason in common_pb2.ErrorReason.values()[1:]:
        reason = common_pb2.ErrorReason.Name(item.reason).removeprefix(_REASON_PREFIX)
    return _error_class(reason, code)(item.message, code=code, reason=reason)


def _error_class(reason: str, code: grpc.StatusCode) -> type[EmbedGrpcError]:
    if reason:
        return ERRORS_BY_REASON.get(reason, EmbedGrpcError)
    return _ERRORS_BY_CODE.get(code, EmbedGrpcError)


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
