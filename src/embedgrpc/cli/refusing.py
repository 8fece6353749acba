"""Says on stderr why a command does not go on."""

import logging
import sys


def refuse(error: Exception, *, code: int) -> int:
    """Write an error, each of its lines on one of its own; return the exit code."""
    for handler in logging.getLogger().handlers:
        # What was logged before is to be read before.
        handler.flush()
    for line in str(error).splitlines():
        sys.stderr.write(f"embedgrpc: {line}\n")
    return code
