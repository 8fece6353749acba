"""How fast work is done, learnt from the batches that were run."""

import threading

# What a batch leaves of the sums.
_DECAY = 0.9
# How many tokens the guess counts for: more than a health check's, so that a first run, which is
# slow, is not taken for the rule; less than a few batches'.
_GUESS_TOKENS = 512


class DrainRate:
    """A moving average of the seconds that a token takes. Safe to use from any thread.

    Args:
        token_s: A guess, in seconds, which counts until some batches were run.
    """

    def __init__(self, token_s: float) -> None:
        self._lock = threading.Lock()
        self._tokens = float(_GUESS_TOKENS)
        self._seconds = _GUESS_TOKENS * token_s
        self._token_s = token_s

    @property
    def token_s(self) -> float:
        """Seconds that a token takes."""
        return self._token_s

    def add(self, tokens: int, seconds: float) -> None:
        """Takes a batch into account.

        Args:
            tokens: What was run.
            seconds: How long the lanes were busy since one of them last ended a batch.
        """
        with self._lock:
            self._tokens = _DECAY * self._tokens + tokens
            self._seconds = _DECAY * self._seconds + seconds
            self._token_s = self._seconds / self._tokens
