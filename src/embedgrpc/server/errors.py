"""From the engine's errors to gRPC statuses, as AIP-193 asks: one ErrorInfo, stable reasons."""

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from embedgrpc.engine.errors import EngineError, Reason
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

Metadata = tuple[tuple[str, str | bytes], ...]


def status_code(error: EngineError) -> StatusCode:
    """Returns the status of a failure."""
    return _CODES[error.reason]


def message_of(error: EngineError) -> str:
    """Returns the message for people, of bounded length."""
    return error.message[:_MESSAGE_CHARACTERS_MAX]


def trailing_metadata(error: EngineError) -> Metadata:
    """Returns the details of a failure: google.rpc.Status, and when to retry.

    Source: gRFC A6 for the pushback, which official clients honour.
    """
    number: int = status_code(error).value[0]
    status = status_pb2.Status(code=number, message=message_of(error))
    details = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.value, domain=DOMAIN, metadata=error.metadata
        )
    ]
    if error.field:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=error.field, description=message_of(error)
                    )
                ]
            )
        )
    metadata: list[tuple[str, str | bytes]] = []
    if error.retry_delay_s is not None:
        milliseconds = max(int(error.retry_delay_s * 1000), 1)
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(milliseconds)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        metadata.append(("grpc-retry-pushback-ms", str(milliseconds)))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(metadata)


def item_error(error: EngineError) -> common_pb2.ItemError:
    """Returns a failure as it stands in a stream's result."""
    number: int = status_code(error).value[0]
    return common_pb2.ItemError(
        code=number,
        reason=f"ERROR_REASON_{error.reason.value}",
        message=message_of(error),
    )
