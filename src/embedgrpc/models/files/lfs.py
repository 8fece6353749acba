"""Tells a file from what Git leaves where large files were not fetched."""

from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import open_regular

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(path: Path) -> None:
    """Checks that a file is not what Git leaves where large files were not fetched.

    Raises:
        ModelError: It is, it cannot be read, or it is no regular file.
    """
    with open_regular(path) as file:
        start = file.read(len(_POINTER))
    refuse_pointer(path, start)


def refuse_pointer(path: Path, content: bytes) -> None:
    """Checks the content of a file as `check_no_pointer` does.

    Raises:
        ModelError: It is what Git leaves.
    """
    if content.startswith(_POINTER):
        raise ModelError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there")
