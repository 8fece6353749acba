"""Reads the tensors of a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from embedgrpc.models.errors import ModelError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_DTYPES = frozenset({"F32", "F16", "BF16", "F64"})


class TensorFile:
    """An open safetensors file; its tensors are read one by one. For a `with` statement."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            ModelError: It cannot be read, or is no safetensors file.
        """
        check_no_pointer(path)
        self.path = path
        try:
            opened: Any = safe_open(str(path), framework="numpy")
            self._file: Any = opened.__enter__()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from error
        self.names = frozenset(self._file.keys())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks that tensors are there, of floating point and of these shapes.

        Raises:
            ModelError: Some are not; it names each.
        """
        faults = []
        for name, shape in shapes.items():
            if name not in self.names:
                faults.append(f"{name} is missing")
                continue
            header = self._file.get_slice(name)
            found = tuple(header.get_shape())
            if found != shape:
                faults.append(f"{name} has shape {list(found)}, not {list(shape)}")
            elif header.get_dtype() not in _DTYPES:
                faults.append(f"{name} has type {header.get_dtype()}, which is not supported")
        if faults:
            raise ModelError(f"{self.path} does not fit config.json: {'; '.join(faults)}")

    def read(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as float32, whatever it is stored as."""
        return np.asarray(self._file.get_tensor(name)).astype(np.float32, copy=False)


def check_no_pointer(path: Path) -> None:
    """Checks that a file is not what Git leaves where large files were not fetched.

    Raises:
        ModelError: It is, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start == _LFS_POINTER:
        raise ModelError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there")
