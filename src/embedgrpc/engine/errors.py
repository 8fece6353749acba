"""Why a piece of work failed, as the whole server speaks of it.

    EngineError
        InvalidRequestError      a rule of the contract is broken
        EmptyInputError          an input holds no text
        InputTooLongError        an input is too long and may not be cut
        ModelNotFoundError       no such model is served
        UnsupportedError         the model lacks what was asked of it
        OverloadedError          more work than can be finished in time
        DeadlineExpiredError     the time for it is over
        BackendUnavailableError  the model is loading, or its backend is away
        ShuttingDownError        the server is about to stop
        BackendFailedError       the model ran, and the run failed
        NonFiniteOutputError     the model answered with NaN, infinity or a zero vector

Messages say what, which value and which limit; they never hold an input.
"""

import secrets
import traceback
from collections.abc import Mapping
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


class EngineError(Exception):
    """A failure that a caller is told about.

    Attributes:
        reason: Why, as the contract names it.
        message: For people.
        field: The field of the request to blame, such as `texts[3]`; empty where none is.
        metadata: The variables of the message, keys in lowerCamelCase.
        retry_delay_s: When to try again; None where that is not for us to say.
        index: Which input of a job failed; 0 where that does not matter.
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

    @classmethod
    def fault(cls) -> "EngineError":
        """Makes the answer to a fault of ours: an incident number, for the log as well."""
        incident = secrets.token_hex(8)
        return EngineError(f"internal error, incident {incident}", metadata={"incident": incident})

    def log_fields(self, cause: BaseException) -> dict[str, str]:
        """Describes a fault of ours for the log.

        Args:
            cause: The exception that was not expected. Where it happened is told, and not what
                it says: that may hold a text.
        """
        return {
            "error": type(cause).__name__,
            "stack": "".join(traceback.format_tb(cause.__traceback__)),
            **self.metadata,
        }


class InvalidRequestError(EngineError):
    """A rule of the contract is broken."""

    reason = Reason.INVALID_REQUEST


class EmptyInputError(EngineError):
    """An input holds no text."""

    reason = Reason.EMPTY_INPUT


class InputTooLongError(EngineError):
    """An input is too long and may not be cut."""

    reason = Reason.INPUT_TOO_LONG


class ModelNotFoundError(EngineError):
    """No model of this name is served."""

    reason = Reason.MODEL_NOT_FOUND


class UnsupportedError(EngineError):
    """The model lacks what was asked of it."""

    reason = Reason.UNSUPPORTED


class OverloadedError(EngineError):
    """There is more work than can be finished in time."""

    reason = Reason.OVERLOADED


class DeadlineExpiredError(EngineError):
    """The time for it is over."""

    reason = Reason.DEADLINE_EXPIRED


class BackendUnavailableError(EngineError):
    """The model is being loaded, or its backend is away."""

    reason = Reason.BACKEND_UNAVAILABLE


class ShuttingDownError(EngineError):
    """The server is about to stop."""

    reason = Reason.SHUTTING_DOWN


class BackendFailedError(EngineError):
    """The model ran, and the run failed."""

    reason = Reason.BACKEND_FAILED


class NonFiniteOutputError(EngineError):
    """The model answered with NaN, infinity, or zeros that should get unit length."""

    reason = Reason.NON_FINITE_OUTPUT
