"""Gives the tensors of a file from torch.save the common interface."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.tensors.torch_file import read_tensors
from embedgrpc.models.tensors.weights import Tensors


class TorchTensors(Tensors):
    """The tensors of a `.bin` or `.pt` file, all in memory."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ModelError: It cannot be read, or contains anything but tensors.
        """
        self.path = path
        self._tensors = dict(read_tensors(path))
        self.names = frozenset(self._tensors)

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; see `Tensors`."""
        values = self._tensors[name]
        floating = values.dtype == np.float32
        return values.shape, "F32" if floating else str(values.dtype)

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""
        return self._tensors[name].astype(np.float32, copy=False)

    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers; see `Tensors`."""
        return self._tensors[name].astype(np.int64, copy=False)
