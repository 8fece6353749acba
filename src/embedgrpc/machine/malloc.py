"""Returns freed memory to the system."""

import ctypes
from collections.abc import Callable


def _find() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return found


_MALLOC_TRIM = _find()


def trim_memory() -> None:
    """Return free memory to the system, if the C library can. Takes a few ms; any thread."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
