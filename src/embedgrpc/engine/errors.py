"""The reasons why work fails, as the server reports them.

    EngineError
        InvalidRequestError      a rule of the contract is broken
        EmptyInputError          an input holds no text
        InputTooLongError        an input is too long and must not be truncated
        ModelNotFoundError       no such model is served
        UnsupportedError         the model cannot do what was requested
        OverloadedError          there is more work than can be finished in time
        RateLimitedError         the caller exceeds a limit of its own
        DeadlineExpiredError     the deadline passed
        BackendUnavailableError  the model is loading, or its backend cannot be reached
        ShuttingDownError        the server is stopping
        BackendFailedError       running the model failed
        NonFiniteOutputError     the model returned NaN, infinity or a zero vector
        UnauthenticatedError     the caller did not prove who it is
        PermissionDeniedError    the caller may not do this

Messages state the problem, the value and the limit; they never contain input text.
"""

import secrets
import traceback
from collections.abc import Mapping, Sequence
from enum import StrEnum


class Reason(StrEnum):
    """The names of `embedgrpc.v1.ErrorReason`, without its prefix."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INPUT_TOO_LONG = "INPUT_TOO_LONG"
    EMPTY_INPUT = "EMPTY_INPUT"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    UNSUPPORTED = "UNSUPPORTED"
    OVERLOADED = "OVERLOADED"
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    BACKEND_FAILED = "BACKEND_FAILED"
    NON_FINITE_OUTPUT = "NON_FINITE_OUTPUT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RATE_LIMITED = "RATE_LIMITED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"


# A response may name so many inputs: more do not fit into the trailing metadata of a call.
OTHERS_MAX = 99


class EngineError(Exception):
    """A failure that is reported to the caller.

    Attributes:
        reason: The reason in the contract.
        message: Text for people.
        field: The request field at fault, such as `texts[3]`; empty when there is none.
        metadata: The variables of the message, keys in lowerCamelCase.
        retry_delay_s: When to retry; None to leave that to the client.
        index: The input of the job that failed; 0 where that does not matter.
        others: The errors of further inputs of the same job, at most `OTHERS_MAX`.
    """

    reason = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_delay_s = retry_delay_s
        self.index = 0
        self.others: tuple[EngineError, ...] = ()

    def add_others(self, others: "Sequence[EngineError]") -> None:
        """Record the errors of further inputs, in order; those beyond `OTHERS_MAX` are dropped."""
        self.others = tuple(others[:OTHERS_MAX])

    @classmethod
    def fault(cls) -> "EngineError":
        """Return an internal error with an incident number, which the log repeats."""
        incident = secrets.token_hex(8)
        return EngineError(f"internal error, incident {incident}", metadata={"incident": incident})

    def log_fields(self, cause: BaseException) -> dict[str, str]:
        """Return the log fields of an internal error.

        Args:
            cause: The unexpected exception. Its type and stack are logged but not its message,
                which may contain text.
        """
        return {
            "error": type(cause).__name__,
            "stack": "".join(traceback.format_tb(cause.__traceback__)),
            **self.metadata,
        }


class InvalidRequestError(EngineError):
    """The request breaks a rule of the contract."""

    reason = Reason.INVALID_REQUEST


class EmptyInputError(EngineError):
    """An input holds no text."""

    reason = Reason.EMPTY_INPUT


class InputTooLongError(EngineError):
    """An input is too long and must not be truncated."""

    reason = Reason.INPUT_TOO_LONG


class ModelNotFoundError(EngineError):
    """No model of this name is served."""

    reason = Reason.MODEL_NOT_FOUND


class UnsupportedError(EngineError):
    """The model cannot do what was requested."""

    reason = Reason.UNSUPPORTED


class OverloadedError(EngineError):
    """There is more work than can be finished in time."""

    reason = Reason.OVERLOADED


class RateLimitedError(EngineError):
    """The caller exceeds a limit of its own."""

    reason = Reason.RATE_LIMITED


class DeadlineExpiredError(EngineError):
    """The deadline passed."""

    reason = Reason.DEADLINE_EXPIRED


class BackendUnavailableError(EngineError):
    """The model is loading, or its backend cannot be reached."""

    reason = Reason.BACKEND_UNAVAILABLE


class ShuttingDownError(EngineError):
    """The server is stopping."""

    reason = Reason.SHUTTING_DOWN


class BackendFailedError(EngineError):
    """Running the model failed."""

    reason = Reason.BACKEND_FAILED


class NonFiniteOutputError(EngineError):
    """The model returned NaN, infinity, or zeros that must be scaled to unit length."""

    reason = Reason.NON_FINITE_OUTPUT


class UnauthenticatedError(EngineError):
    """The caller did not prove who it is."""

    reason = Reason.UNAUTHENTICATED


class PermissionDeniedError(EngineError):
    """The caller may not do this, or not with this model."""

    reason = Reason.PERMISSION_DENIED
