"""How fast work is done, learnt from the batches that were run."""

import threading

# What a batch leaves of the sums.
_DECAY = 0.9


class DrainRate:
    """A moving average of the seconds that a token takes. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._seconds = 0.0
        self._token_s = 0.0

    @property
    def token_s(self) -> float:
        """Seconds that a token takes; 0 before any batch."""
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
            self._token_s = self._seconds / self._tokens if self._tokens else 0.0
