"""Tells whether a file was changed or replaced, also behind a symbolic link."""

from pathlib import Path
from typing import TypeAlias

# Device, inode, time of the last change in nanoseconds, and size; None where there is no file.
FileState: TypeAlias = tuple[int, int, int, int] | None


def file_state(path: str) -> FileState:
    """Return what differs once a file is another one, or has another content. Blocks."""
    try:
        found = Path(path).expanduser().stat()
    except (OSError, RuntimeError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
