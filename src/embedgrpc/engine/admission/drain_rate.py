"""The speed at which work is done, learned from batches."""

import threading

# The weight that older batches keep when one is added.
_DECAY = 0.9
# The weight of the initial guess, in tokens. It is more than a health check's, so that a slow
# first run does not dominate, and less than that of a few batches.
_GUESS_TOKENS = 512


class DrainRate:
    """A moving average of the seconds per token. Safe to use from any thread.

    Args:
        token_s: An initial guess, in seconds, replaced as batches run.
    """

    def __init__(self, token_s: float) -> None:
        self._lock = threading.Lock()
        self._tokens = float(_GUESS_TOKENS)
        self._seconds = _GUESS_TOKENS * token_s
        self._token_s = token_s

    @property
    def token_s(self) -> float:
        """Seconds per token."""
        return self._token_s

    def add(self, tokens: int, seconds: float) -> None:
        """Record a batch.

        Args:
            tokens: Tokens that ran.
            seconds: Time that lanes were busy since the last batch ended.
        """
        with self._lock:
            self._tokens = _DECAY * self._tokens + tokens
            self._seconds = _DECAY * self._seconds + seconds
            self._token_s = self._seconds / self._tokens
