"""Failures in HTTP: statuses, retry headers and the forms of error bodies."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from embedgrpc.engine.errors import EngineError, Reason

STATUSES: Final[Mapping[Reason, int]] = {
    Reason.INVALID_REQUEST: 400,
    Reason.INPUT_TOO_LONG: 400,
    Reason.EMPTY_INPUT: 400,
    Reason.MODEL_NOT_FOUND: 404,
    Reason.UNSUPPORTED: 400,
    Reason.OVERLOADED: 429,
    Reason.DEADLINE_EXPIRED: 504,
    Reason.BACKEND_UNAVAILABLE: 503,
    Reason.BACKEND_FAILED: 500,
    Reason.NON_FINITE_OUTPUT: 500,
    Reason.UNAUTHENTICATED: 401,
    Reason.PERMISSION_DENIED: 403,
    Reason.RATE_LIMITED: 429,
    Reason.SHUTTING_DOWN: 503,
    Reason.INTERNAL: 500,
}
# The message of an error is for people; a request can make it no longer than this.
_MESSAGE_CHARACTERS_MAX = 1024

CHALLENGE_HEADER: Final = "www-authenticate"

Write = Callable[[EngineError, int], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How a dialect writes errors.

    Attributes:
        body: The type of the body.
        write: Writes an error with the status that its reason has; returns the dialect's own
            status and the body.
    """

    body: Any
    write: Write

    def __call__(self, error: EngineError, status: int) -> tuple[int, bytes]:
        """Write an error."""
        return self.write(error, status)


def error_form(body: Any) -> Callable[[Write], ErrorForm]:
    """Make a function that writes errors with a body of this type an error form."""
    return lambda write: ErrorForm(body, write)


class HttpError(Exception):
    """A failure that HTTP has a status of its own for.

    Attributes:
        status: The status.
        error: What went wrong.
        headers: Headers for the response.
    """

    def __init__(
        self, status: int, error: EngineError, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = dict(headers or {})


def retry_headers(error: EngineError) -> dict[str, str]:
    """Return when to retry, in whole seconds and in milliseconds; {} if that is unknown.

    OpenAI's clients read `retry-after-ms` first.
    """
    if error.retry_delay_s is None:
        return {}
    return {
        "retry-after": str(max(math.ceil(error.retry_delay_s), 1)),
        "retry-after-ms": str(max(round(error.retry_delay_s * 1000), 1)),
    }


def challenge_headers(error: EngineError) -> dict[str, str]:
    """Return how to prove who calls; {} for errors that are about something else.

    Source: RFC 6750, section 3.
    """
    if error.reason is not Reason.UNAUTHENTICATED:
        return {}
    given = error.metadata.get("label") != "NO_CREDENTIALS"
    return {
        CHALLENGE_HEADER: 'Bearer realm="embedgrpc"' + (', error="invalid_token"' if given else "")
    }


def shown_message(error: EngineError) -> str:
    """Return the message for people, of bounded length."""
    return error.message[:_MESSAGE_CHARACTERS_MAX]
