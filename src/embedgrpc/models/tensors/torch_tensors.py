"""Gives the tensors of a file from torch.save the common interface."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.tensors.torch_file import TorchFile
from embedgrpc.models.tensors.weights import Tensors

# Names of types in safetensors; other types are refused by NumPy's name.
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class TorchTensors(Tensors):
    """The tensors of a `.bin` or `.pt` file, read one by one."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ModelError: It cannot be read, or contains anything but tensors.
        """
        self.path = path
        self._file = TorchFile(path)
        self.names = frozenset(self._file.views)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; see `Tensors`."""
        view = self._file.views[name]
        return view.shape, _FLOATS.get(view.storage.dtype, view.storage.dtype)

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""
        return self._file.read(name).astype(np.float32, copy=False)

    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers; see `Tensors`."""
        return self._file.read(name).astype(np.int64, copy=False)
