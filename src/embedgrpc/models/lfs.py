"""Tells a file from what Git leaves where large files were not fetched."""

from pathlib import Path

from embedgrpc.models.errors import ModelError

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(path: Path) -> None:
    """Checks that a file is not what Git leaves where large files were not fetched.

    Raises:
        ModelError: It is, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start == _POINTER:
        raise ModelError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there")
