"""Says on stderr why a command does not go on."""

import sys


def refuse(error: Exception, *, code: int) -> int:
    """Writes an error, each of its lines on one of its own; returns the exit code."""
    for line in str(error).splitlines():
        sys.stderr.write(f"embedgrpc: {line}\n")
    return code
