"""Maps the engine's errors to gRPC statuses, as AIP-193 asks: one ErrorInfo, stable reasons."""

from collections.abc import Mapping
from functools import lru_cache

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.rpc.request_id import REQUEST_ID_KEY
from embedgrpc.v1 import common_pb2

DOMAIN = "embedgrpc"

_CODES = {
    Reason.INVALID_REQUEST: StatusCode.INVALID_ARGUMENT,
    Reason.INPUT_TOO_LONG: StatusCode.INVALID_ARGUMENT,
    Reason.EMPTY_INPUT: StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: StatusCode.NOT_FOUND,
    Reason.UNSUPPORTED: StatusCode.FAILED_PRECONDITION,
    Reason.OVERLOADED: StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXPIRED: StatusCode.DEADLINE_EXCEEDED,
    Reason.BACKEND_UNAVAILABLE: StatusCode.UNAVAILABLE,
    Reason.BACKEND_FAILED: StatusCode.INTERNAL,
    Reason.NON_FINITE_OUTPUT: StatusCode.INTERNAL,
    Reason.UNAUTHENTICATED: StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: StatusCode.PERMISSION_DENIED,
    Reason.RATE_LIMITED: StatusCode.RESOURCE_EXHAUSTED,
    Reason.SHUTTING_DOWN: StatusCode.UNAVAILABLE,
    Reason.INTERNAL: StatusCode.INTERNAL,
}
# From about 16 KB on, clients see "Stream removed" instead of the status.
_MESSAGE_CHARACTERS_MAX = 1024
# During an overload, refusals differ only in the retry delay.
_KNOWN_METADATA_MAX = 256

Metadata = tuple[tuple[str, str | bytes], ...]


def status_code(error: EngineError) -> StatusCode:
    """Return the status code of a failure."""
    return _CODES[error.reason]


def message_of(error: EngineError) -> str:
    """Return the message for people, of bounded length."""
    return error.message[:_MESSAGE_CHARACTERS_MAX]


def trailing_metadata(error: EngineError, *, request_id: str = "") -> Metadata:
    """Return the details of a failure: google.rpc.Status, and the retry delay.

    Source: gRFC A6 for the pushback, which official clients follow.

    Args:
        error: The failure.
        request_id: The id that the caller gave the call; may be empty.
    """
    milliseconds = 0
    if error.retry_delay_s is not None:
        milliseconds = max(round(error.retry_delay_s * 1000), 1)
    variables = _variables(error)
    if request_id:
        variables = (*variables, ("requestId", request_id))
    # Details with a request id are sent once.
    metadata = (_metadata_of if request_id else _known_metadata_of)(
        error.reason,
        message_of(error),
        error.field,
        variables,
        others=tuple((other.field, other.reason.value) for other in error.others),
        retry_delay_ms=milliseconds,
    )
    return (*metadata, (REQUEST_ID_KEY, request_id)) if request_id else metadata


def _metadata_of(
    reason: Reason,
    message: str,
    field: str,
    variables: tuple[tuple[str, str], ...],
    *,
    others: tuple[tuple[str, str], ...],
    retry_delay_ms: int,
) -> Metadata:
    """Return the details; with 0 ms, without a retry delay."""
    number: int = _CODES[reason].value[0]
    status = status_pb2.Status(code=number, message=message)
    details = [
        error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=dict(variables))
    ]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation
        violations = [violation(field=field, description=message, reason=reason.value)]
        # Without descriptions: a hundred of them would be too large for trailing metadata.
        violations += [violation(field=other, reason=why) for other, why in others]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if reason is Reason.RATE_LIMITED:
        details.append(_quota_failure(dict(variables), message))
    metadata: list[tuple[str, str | bytes]] = []
    if retry_delay_ms:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_delay_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        metadata.append(("grpc-retry-pushback-ms", str(retry_delay_ms)))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(metadata)


def _quota_failure(variables: Mapping[str, str], message: str) -> error_details_pb2.QuotaFailure:
    """Return which limit a caller exceeds."""
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=f"caller:{variables.get('caller', '')}",
        description=message,
        quota_id=variables.get("label", ""),
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


# An overloaded server sends the same details a thousand times a second.
_known_metadata_of = lru_cache(_KNOWN_METADATA_MAX)(_metadata_of)


def _variables(error: EngineError) -> tuple[tuple[str, str], ...]:
    variables = tuple(error.metadata.items())
    if not error.others:
        return variables
    return (*variables, ("failedInputs", str(1 + len(error.others))))


def item_error(error: EngineError) -> common_pb2.ItemError:
    """Return the error of one item of a call."""
    number: int = status_code(error).value[0]
    item = common_pb2.ItemError(
        code=number,
        reason=f"ERROR_REASON_{error.reason.value}",
        message=message_of(error),
        metadata=error.metadata,
    )
    if error.retry_delay_s is not None:
        item.retry_delay.FromMilliseconds(max(round(error.retry_delay_s * 1000), 1))
    return item
