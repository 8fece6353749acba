"""Files that are there as a whole or not at all, also after a crash."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def with_ending(stem: Path, ending: str) -> Path:
    """Return a path with an ending added; `Path.with_suffix` would replace what is after a dot."""
    return stem.with_name(stem.name + ending)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, sync it, and give it its name.

    Args:
        path: The file; one that exists is replaced.
        write: Writes the contents.
    """
    # Hidden, so that readers of the folder pass over what a crash left.
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file, and sync it."""
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system lets one sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
