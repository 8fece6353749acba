"""The time limit of a stop."""

import logging
import os
import threading

_logger = logging.getLogger(__name__)

_EXIT_CODE = 1
# A blocked log must not keep the process alive.
_LOG_S_MAX = 1.0


class ShutdownDeadline:
    """Ends the process when a stop takes too long.

    It runs on a daemon thread, so that neither a blocked event loop nor threads that do not end
    can hold it up.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def begin(self) -> None:
        """Start the timer. Called when the stop begins."""
        timer = threading.Timer(self._timeout_s, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        logging_thread = threading.Thread(target=self._log, daemon=True)
        logging_thread.start()
        logging_thread.join(_LOG_S_MAX)
        os._exit(_EXIT_CODE)

    def _log(self) -> None:
        _logger.error("stop took too long", extra={"shutdown_timeout_s": self._timeout_s})
        for handler in logging.getLogger().handlers:
            handler.flush()
