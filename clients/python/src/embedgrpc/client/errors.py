"""What a call can raise.

    EmbedGrpcError             any other status
      InvalidRequestError      INVALID_ARGUMENT     INVALID_REQUEST
      EmptyInputError          INVALID_ARGUMENT     EMPTY_INPUT
      InputTooLongError        INVALID_ARGUMENT     INPUT_TOO_LONG
      ModelNotFoundError       NOT_FOUND            MODEL_NOT_FOUND
      UnsupportedError         FAILED_PRECONDITION  UNSUPPORTED
      OverloadedError          RESOURCE_EXHAUSTED   OVERLOADED
      RateLimitedError         RESOURCE_EXHAUSTED   RATE_LIMITED
      DeadlineExpiredError     DEADLINE_EXCEEDED    DEADLINE_EXPIRED, or "" when told by gRPC itself
      BackendUnavailableError  UNAVAILABLE          BACKEND_UNAVAILABLE
      ShuttingDownError        UNAVAILABLE          SHUTTING_DOWN
      BackendFailedError       INTERNAL             BACKEND_FAILED
      NonFiniteOutputError     INTERNAL             NON_FINITE_OUTPUT
      UnauthenticatedError     UNAUTHENTICATED      UNAUTHENTICATED
      PermissionDeniedError    PERMISSION_DENIED    PERMISSION_DENIED
      InternalError            INTERNAL             INTERNAL
      ConnectionFailedError    UNAVAILABLE          ""  no server answered, or the connection broke
      BadResponseError         INTERNAL             ""  the answer breaks the contract
      MessageTooLargeError     RESOURCE_EXHAUSTED   ""  a message is too large: do not try it again

The second column is `code`, the third `reason`: the name of a value of `ErrorReason`.
"""

from collections.abc import Mapping
from typing import Any, Final

import grpc


class EmbedGrpcError(Exception):
    """A call failed, or one input of a stream did.

    Attributes:
        message: For people: what failed, which value and which limit.
        code: The gRPC status.
        reason: The reason that the server gave, such as "INPUT_TOO_LONG"; "" when it gave none.
        metadata: The variables of the message, by name.
        field_violations: The fields of the request that are to blame, each with a description.
        retry_delay_s: How long the server asks to wait before another try; None if it does not.
        unanswered_ids: After a stream broke: the ids of the inputs that were taken from the
            caller and have no result, oldest first.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field_violations: tuple[tuple[str, str], ...] = (),
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata = dict(metadata or {})
        self.field_violations = field_violations
        self.retry_delay_s = retry_delay_s
        self.unanswered_ids: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"


class InvalidRequestError(EmbedGrpcError):
    """The request breaks a rule of the contract; `field_violations` names the fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class EmptyInputError(EmbedGrpcError):
    """An input holds no text."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "EMPTY_INPUT"


class InputTooLongError(EmbedGrpcError):
    """An input is longer than allowed and may not be cut."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INPUT_TOO_LONG"


class ModelNotFoundError(EmbedGrpcError):
    """No model with this id or alias is served."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class UnsupportedError(EmbedGrpcError):
    """The model lacks what was asked of it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UNSUPPORTED"


class OverloadedError(EmbedGrpcError):
    """The server has more work than it can finish in time; retry after `retry_delay_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class RateLimitedError(EmbedGrpcError):
    """The caller has used up its own share; retry after `retry_delay_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"


class DeadlineExpiredError(EmbedGrpcError):
    """The deadline of the call passed, here or on the server."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXPIRED"


class BackendUnavailableError(EmbedGrpcError):
    """The model is being loaded, or what runs it cannot be reached."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "BACKEND_UNAVAILABLE"


class ShuttingDownError(EmbedGrpcError):
    """The server is about to stop; another one answers."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class BackendFailedError(EmbedGrpcError):
    """The model was run, and the run failed."""

    code = grpc.StatusCode.INTERNAL
    reason = "BACKEND_FAILED"


class NonFiniteOutputError(EmbedGrpcError):
    """The model answered with numbers that are not finite, or with a vector of zeros."""

    code = grpc.StatusCode.INTERNAL
    reason = "NON_FINITE_OUTPUT"


class UnauthenticatedError(EmbedGrpcError):
    """The call has no valid credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(EmbedGrpcError):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class InternalError(EmbedGrpcError):
    """The server itself is at fault; its log has the incident number of the message."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class ConnectionFailedError(EmbedGrpcError):
    """No embedgrpc server answered, or the connection to it broke."""

    code = grpc.StatusCode.UNAVAILABLE


class BadResponseError(EmbedGrpcError):
    """The server's answer breaks the contract."""

    code = grpc.StatusCode.INTERNAL


class MessageTooLargeError(EmbedGrpcError):
    """A message has more bytes than the server, a proxy or this client takes.

    Trying it again does not help. `metadata` has `bytes` and `maxBytes` of a request, or
    `answerBytes` and `maxAnswerBytes` of an answer, where they are known.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


ERRORS_BY_REASON: Final[Mapping[str, type[EmbedGrpcError]]] = {
    error.reason: error for error in EmbedGrpcError.__subclasses__() if error.reason
}
