"""Maps the status of a failed call to an error and its consequences.

A server's text is only compared, never passed on: it may contain paths, stacks and token ids.

Source: the status codes and texts of Triton's gRPC front end.
"""

from dataclasses import dataclass

from grpc import StatusCode

from embedgrpc.backends.base import (
    BackendDeadlineError,
    BackendError,
    BackendOverloadedError,
    BackendUnreachableError,
)

_QUEUE_FULL = "exceeds maximum queue size"
_QUEUED_TOO_LONG = "request timeout expired"


@dataclass(frozen=True, slots=True)
class Failure:
    """The consequences of a failed call.

    Attributes:
        error: The error for the caller.
        lost: Whether the endpoint or its model is not there; another endpoint may run the batch.
        blamed: Whether the endpoint is to blame, and not the batch or the load.
        silent: Whether the endpoint did not answer.
    """

    error: BackendError
    lost: bool = False
    blamed: bool = False
    silent: bool = False


def judge(endpoint: str, code: StatusCode, text: str, *, callers_gave_up: bool) -> Failure:
    """Return the consequences of a failed call.

    Args:
        endpoint: Address of the endpoint.
        code: The status.
        text: The server's text.
        callers_gave_up: Whether the call's time limit was the callers' deadline.
    """
    said = f"{endpoint} answered {code.name}"
    failure = Failure(BackendError(said), blamed=True)
    match code:
        case StatusCode.UNAVAILABLE if _QUEUE_FULL in text.lower():
            failure = Failure(BackendOverloadedError(f"{said}: its queue is full"))
        case StatusCode.UNAVAILABLE if _QUEUED_TOO_LONG in text.lower():
            failure = Failure(BackendDeadlineError(f"{said}: the request waited too long there"))
        case StatusCode.UNAVAILABLE | StatusCode.NOT_FOUND:
            failure = Failure(BackendUnreachableError(said), lost=True)
        case StatusCode.RESOURCE_EXHAUSTED:
            failure = Failure(BackendOverloadedError(said))
        case StatusCode.DEADLINE_EXCEEDED:
            late = f"{endpoint} did not answer in time"
            kind = BackendDeadlineError if callers_gave_up else BackendUnreachableError
            failure = Failure(kind(late), blamed=True, silent=True)
        case StatusCode.CANCELLED:
            failure = Failure(BackendUnreachableError(said), blamed=True)
        case StatusCode.INVALID_ARGUMENT:
            failure = Failure(BackendError(said))
    return failure
