"""Detects Git LFS pointers: what a clone contains instead of large files."""

from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import open_regular

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer.

    Raises:
        ModelError: It is one, cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        start = file.read(len(_POINTER))
    refuse_pointer(path, start)


def refuse_pointer(path: Path, content: bytes) -> None:
    """Check that the content of a file is not a Git LFS pointer.

    Raises:
        ModelError: It is one.
    """
    if content.startswith(_POINTER):
        raise ModelError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there")
