"""The errors of calls.

    EmbedGrpcError             any other status
      InvalidRequestError      INVALID_ARGUMENT     INVALID_REQUEST
      EmptyInputError          INVALID_ARGUMENT     EMPTY_INPUT
      InputTooLongError        INVALID_ARGUMENT     INPUT_TOO_LONG
      ModelNotFoundError       NOT_FOUND            MODEL_NOT_FOUND
      UnsupportedError         FAILED_PRECONDITION  UNSUPPORTED
      OverloadedError          RESOURCE_EXHAUSTED   OVERLOADED
      RateLimitedError         RESOURCE_EXHAUSTED   RATE_LIMITED
      DeadlineExpiredError     DEADLINE_EXCEEDED    DEADLINE_EXPIRED, or "" from gRPC itself
      BackendUnavailableError  UNAVAILABLE          BACKEND_UNAVAILABLE
      ShuttingDownError        UNAVAILABLE          SHUTTING_DOWN
      BackendFailedError       INTERNAL             BACKEND_FAILED
      NonFiniteOutputError     INTERNAL             NON_FINITE_OUTPUT
      UnauthenticatedError     UNAUTHENTICATED      UNAUTHENTICATED
      PermissionDeniedError    PERMISSION_DENIED    PERMISSION_DENIED
      InternalError            INTERNAL             INTERNAL
      ConnectionFailedError    UNAVAILABLE          ""  no server responded, or the connection broke
      BadResponseError         INTERNAL             ""  the response breaks the contract
      MessageTooLargeError     RESOURCE_EXHAUSTED   ""  a message is too large; do not retry
      ModelChangedError        FAILED_PRECONDITION  ""  a stream goes on with another model
      EncodeError              that of the first error: texts of `encode` failed

The second column is `code`. The third is `reason`, a value of `ErrorReason`.
"""

import functools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray


class FieldViolation(NamedTuple):
    """A field of a request that is at fault.

    Attributes:
        field: The field, such as "texts[3]".
        description: The text for people; "" after the first violation of a call.
        reason: The reason, such as "EMPTY_INPUT"; "" if the server sent none.
    """

    field: str
    description: str = ""
    reason: str = ""


class EmbedGrpcError(Exception):
    """A call failed, or one input of a stream or of a partial batch did.

    Attributes:
        message: The text for people: what failed, which value, which limit.
        code: The gRPC status code.
        reason: The reason that the server sent, such as "INPUT_TOO_LONG"; "" if it sent none.
            A reason that this version does not know has the class of its status.
        metadata: The variables of the message, by name.
        field_violations: The fields of the request that are at fault, at most 100: every text
            that failed, where several did.
        retry_delay_s: The wait before a retry that the server asks for; None if it sent none.
        unanswered_ids: After a stream broke: the ids of the inputs that were read from the
            caller and have no result, oldest first. `remaining()` of the stream returns all that
            is left: these inputs, and those that were not read.
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
        field_violations: tuple[FieldViolation, ...] = (),
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

    @property
    def label(self) -> str:
        """What exactly failed, such as "QUEUE_FULL"; "" if the server did not say."""
        return self.metadata.get("label", "")

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"


class InvalidRequestError(EmbedGrpcError):
    """The request breaks a rule of the contract; `field_violations` names the fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class EmptyInputError(EmbedGrpcError):
    """An input is empty."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "EMPTY_INPUT"


class InputTooLongError(EmbedGrpcError):
    """An input exceeds the limit, and truncation is off."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INPUT_TOO_LONG"


class ModelNotFoundError(EmbedGrpcError):
    """The server has no model with this id or alias."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class UnsupportedError(EmbedGrpcError):
    """The model does not support what the call asks for."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UNSUPPORTED"


class OverloadedError(EmbedGrpcError):
    """The server is overloaded; retry after `retry_delay_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class RateLimitedError(EmbedGrpcError):
    """The caller exceeded its rate limit; retry after `retry_delay_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"


class DeadlineExpiredError(EmbedGrpcError):
    """The deadline of the call expired, in the client or on the server."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXPIRED"


class BackendUnavailableError(EmbedGrpcError):
    """The model is loading, or its backend cannot be reached."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "BACKEND_UNAVAILABLE"


class ShuttingDownError(EmbedGrpcError):
    """The server is shutting down; retry on another one."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class BackendFailedError(EmbedGrpcError):
    """The model ran and failed."""

    code = grpc.StatusCode.INTERNAL
    reason = "BACKEND_FAILED"


class NonFiniteOutputError(EmbedGrpcError):
    """The model returned NaN or infinity, or a vector of zeros."""

    code = grpc.StatusCode.INTERNAL
    reason = "NON_FINITE_OUTPUT"


class UnauthenticatedError(EmbedGrpcError):
    """The call has no valid credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(EmbedGrpcError):
    """The credentials are valid but do not permit this call."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class InternalError(EmbedGrpcError):
    """The server has a bug; its log has the incident number of the message."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class ConnectionFailedError(EmbedGrpcError):
    """No embedgrpc server responded, or the connection to it broke."""

    code = grpc.StatusCode.UNAVAILABLE


class BadResponseError(EmbedGrpcError):
    """The response of the server breaks the contract."""

    code = grpc.StatusCode.INTERNAL


class MessageTooLargeError(EmbedGrpcError):
    """A message exceeds the size limit of the server, a proxy or this client.

    A retry does not help. Where the sizes are known, `metadata` has `bytes` and `maxBytes` for a
    request, `answerBytes` and `maxAnswerBytes` for a response.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ModelChangedError(EmbedGrpcError):
    """A stream that went on with another call found another model.

    Its results do not belong with those before. `metadata` has the `fingerprint`, and what it
    `was`.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION


class EncodeError(EmbedGrpcError):
    """Texts of an `encode` failed, or its stream ended after the first vectors.

    Code and reason are those of the first text that failed, or of the end of the stream.

    Attributes:
        errors: The error of each text that failed, by position.
        vectors: What `encode` would have returned. The rows of texts without a vector are NaN, or 0
            for "int8" and "ubinary".
        is_encoded: bool [texts]; whether each text has a vector.
    """

    def __init__(
        self,
        message: str,
        *,
        errors: Mapping[int, EmbedGrpcError],
        vectors: NDArray[Any],
        is_encoded: NDArray[np.bool_],
        code: grpc.StatusCode,
        reason: str,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, reason=reason, retry_delay_s=retry_delay_s)
        self.errors = errors
        self.vectors = vectors
        self.is_encoded = is_encoded

    def __reduce__(self) -> tuple[Any, ...]:
        arguments: dict[str, Any] = {
            "errors": self.errors,
            "vectors": self.vectors,
            "is_encoded": self.is_encoded,
            "code": self.code,
            "reason": self.reason,
            "retry_delay_s": self.retry_delay_s,
        }
        return functools.partial(type(self), self.message, **arguments), ()


ERRORS_BY_REASON: Final[Mapping[str, type[EmbedGrpcError]]] = {
    error.reason: error for error in EmbedGrpcError.__subclasses__() if error.reason
}
