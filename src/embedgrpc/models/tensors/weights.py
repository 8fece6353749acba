"""Reads the tensors of safetensors files one by one."""

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.lfs import check_no_pointer
from embedgrpc.models.files.model_file import open_regular

# The header of a model with 20,000 tensors has 2 MB; one of 95 MB takes 24 s and 1.4 GB to read.
_HEADER_BYTES_MAX = 8 << 20
_TENSORS_MAX = 65_536
# If config.json has another size, all tensors are wrong.
_FAULTS_SHOWN = 8
_HEADER_SIZE = struct.Struct("<Q")
_DTYPES = frozenset({"F32", "F16", "BF16", "F64"})


class Tensors(ABC):
    """Named tensors that are read one by one, for a `with` statement.

    Attributes:
        path: The file, for messages.
        names: The names of all tensors.
    """

    path: Path
    names: frozenset[str]

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Close the files."""

    @abstractmethod
    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; the type as in safetensors."""

    @abstractmethod
    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32, converting other types."""

    @abstractmethod
    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers as int64."""

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that there are floating-point tensors of these names and shapes.

        Raises:
            ModelError: Some are missing or different; it names the first of them.
        """
        faults = []
        for name, shape in shapes.items():
            if name not in self.names:
                faults.append(f"{name} is missing")
                continue
            found, kind = self.describe(name)
            if found != shape:
                faults.append(f"{name} has shape {list(found)}, not {list(shape)}")
            elif kind not in _DTYPES:
                faults.append(f"{name} has type {kind}, which is not supported")
        if faults:
            more = (
                f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
            )
            shown = "; ".join(faults[:_FAULTS_SHOWN])
            raise ModelError(f"{self.path} does not fit config.json: {shown}{more}")


class TensorFile(Tensors):
    """An open safetensors file."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ModelError: It cannot be read, or is not a safetensors file.
        """
        check_no_pointer(path)
        _check_header(path)
        self.path = path
        try:
            opened: Any = safe_open(str(path), framework="numpy")
            self._file: Any = opened.__enter__()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error
        self.names = frozenset(self._file.keys())

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; see `Tensors`."""
        header = self._file.get_slice(name)
        return tuple(header.get_shape()), header.get_dtype()

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""
        return np.asarray(self._file.get_tensor(name)).astype(np.float32, copy=False)

    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers; see `Tensors`."""
        return np.asarray(self._file.get_tensor(name)).astype(np.int64, copy=False)


def _check_header(path: Path) -> None:
    """Check that the header is small enough to be read quickly.

    Raises:
        ModelError: It is not. The library reports other faults.
    """
    with open_regular(path) as file:
        start = file.read(_HEADER_SIZE.size)
        size = _HEADER_SIZE.unpack(start)[0] if len(start) == _HEADER_SIZE.size else 0
        if size > _HEADER_BYTES_MAX:
            raise ModelError(
                f"{path} is not a safetensors file: its header has {size} bytes, more than the "
                f"limit of {_HEADER_BYTES_MAX}"
            )
        count = file.read(size).count(b'"data_offsets"')
    if count > _TENSORS_MAX:
        raise ModelError(f"{path} has {count} tensors, more than the limit of {_TENSORS_MAX}")
