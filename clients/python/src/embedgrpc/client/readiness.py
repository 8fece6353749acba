"""The wait for a server that is not ready yet. No I/O."""

import time
from typing import Final

from embedgrpc.client.channel import valid_timeout
from embedgrpc.client.errors import (
    BackendUnavailableError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    ModelNotFoundError,
    OverloadedError,
    ShuttingDownError,
)

# A server that serves any of these is ready.
READY_SERVICES: Final = (
    "embedgrpc.v1.EmbeddingService",
    "embedgrpc.v1.RerankService",
    "embedgrpc.v1.ClassifyService",
)
_PAUSE_S: Final = 0.1
_PAUSE_S_MAX: Final = 1.0
_NOT_YET: Final = (
    BackendUnavailableError,
    ConnectionFailedError,
    DeadlineExpiredError,
    ModelNotFoundError,
    OverloadedError,
    ShuttingDownError,
)


class Readiness:
    """What is known about a server that may not be ready.

    Args:
        timeout_s: The longest wait, in seconds.
        target: The address of the server.

    Raises:
        ValueError: The timeout is not a positive, finite number.
    """

    def __init__(self, timeout_s: float, target: str) -> None:
        self._timeout_s = valid_timeout(timeout_s)
        self._until = time.monotonic() + timeout_s
        self._target = target
        self._pause_s = _PAUSE_S
        self._cause: EmbedGrpcError | None = None
        self._why = ""

    def left_s(self) -> float:
        """Return the time for the next question, in seconds."""
        return max(self._until - time.monotonic(), _PAUSE_S)

    def note(self, why: str) -> None:
        """Note an answer that says that the server is not ready."""
        self._why, self._cause = why, None

    def note_error(self, error: EmbedGrpcError) -> None:
        """Note an error.

        Raises:
            EmbedGrpcError: A further wait does not help.
        """
        if not isinstance(error, _NOT_YET):
            raise error
        if self._why and isinstance(error, DeadlineExpiredError):
            # The time for the last question is over: an earlier answer says more.
            return
        self._why, self._cause = str(error), error

    def pause_s(self) -> float:
        """Return the wait before the next question, in seconds.

        Raises:
            DeadlineExpiredError: No time is left.
        """
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _PAUSE_S_MAX)
        if time.monotonic() + pause_s >= self._until:
            raise DeadlineExpiredError(
                f"the server at {self._target} was not ready within {self._timeout_s:g} s:"
                f" {self._why}",
                reason="",
            ) from self._cause
        return pause_s
