"""Reports on stderr why a command failed."""

import logging
import sys


def report(error: Exception | str, *, code: int) -> int:
    """Write an error, each of its lines prefixed with the command; return the exit code."""
    for handler in logging.getLogger().handlers:
        # So that earlier log lines stand above the error.
        handler.flush()
    for line in str(error).splitlines():
        sys.stderr.write(f"embedgrpc: {line}\n")
    return code
