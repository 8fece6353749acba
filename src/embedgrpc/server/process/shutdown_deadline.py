"""The longest that a stop may take."""

import logging
import os
import threading

_logger = logging.getLogger(__name__)

_EXIT_CODE = 1
# A log that is blocked must not keep the process.
_LOG_S_MAX = 1.0


class ShutdownDeadline:
    """Ends the process where a stop takes too long.

    On a thread of its own, which neither a blocked event loop nor threads that do not end can
    hold up; it goes with the process.

    Args:
        timeout_s: How long a stop may take, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def begin(self) -> None:
        """Starts the clock. Called when the stop begins."""
        timer = threading.Timer(self._timeout_s, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        telling.join(_LOG_S_MAX)
        os._exit(_EXIT_CODE)

    def _tell(self) -> None:
        _logger.error("stop took too long", extra={"shutdown_timeout_s": self._timeout_s})
        for handler in logging.getLogger().handlers:
            handler.flush()
