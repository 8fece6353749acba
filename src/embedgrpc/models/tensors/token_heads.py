"""Finds the heads of a backbone that make token weights and multi-vectors.

Models such as BGE-M3 have a file with one linear layer for each.

Source: Chen et al., "BGE M3-Embedding", 2024; FlagEmbedding's names of the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import check_file
from embedgrpc.models.tensors.torch_file import read_tensors
from embedgrpc.models.tensors.weights import TensorFile

SPARSE_NAME = "sparse_linear"
MULTI_VECTOR_NAME = "colbert_linear"

# The preferred first: it needs no unpickling.
HEAD_SUFFIXES = (".safetensors", ".pt", ".bin")
_MATRIX_RANK = 2


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A linear layer that is applied to every token vector."""

    path: Path
    in_features: int
    out_features: int

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read the layer.

        Returns:
            The weight, float32 [out_features, in_features], and the bias, float32 [out_features];
            zeros if the file has no bias.

        Raises:
            ModelError: The file cannot be read, or contains something else.
        """
        tensors = _read_layer(self.path)
        return tensors["weight"], tensors["bias"]


def find_head(folder: Path, name: str, *, hidden_size: int) -> TokenHead | None:
    """Return a head of a model, or None if it has none of this name.

    Args:
        folder: The model's folder.
        name: `SPARSE_NAME` or `MULTI_VECTOR_NAME`.
        hidden_size: Values per token vector of the backbone.

    Raises:
        ModelError: The file cannot be read, or does not fit the backbone.
    """
    paths = [folder / f"{name}{suffix}" for suffix in HEAD_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    check_file(path, folder)
    rows, columns = _read_layer(path)["weight"].shape
    if columns != hidden_size:
        raise ModelError(
            f"{path}: weight has shape [{rows}, {columns}], not [{rows}, {hidden_size}] "
            "as the hidden_size of config.json requires"
        )
    if name == SPARSE_NAME and rows != 1:
        raise ModelError(f"{path}: weight has shape [{rows}, {columns}], not [1, {columns}]")
    return TokenHead(path=path, in_features=columns, out_features=rows)


def _read_layer(path: Path) -> Mapping[str, NDArray[np.float32]]:
    tensors = _read_all(path)
    unknown = sorted(tensors.keys() - {"weight", "bias"})
    if unknown:
        raise ModelError(f"{path}: {unknown[0]!r} is not part of a linear layer")
    weight = tensors.get("weight")
    if weight is None:
        raise ModelError(f"{path}: weight is missing")
    if weight.ndim != _MATRIX_RANK or not weight.size:
        raise ModelError(f"{path}: weight has shape {list(weight.shape)}, not two axes with values")
    for name, values in tensors.items():
        if values.dtype != np.float32:
            raise ModelError(f"{path}: {name} has type {values.dtype}, not a floating-point type")
    rows = len(weight)
    bias: NDArray[Any] = tensors.get("bias", np.zeros(rows, dtype=np.float32))
    if bias.shape != (rows,):
        raise ModelError(f"{path}: bias has shape {list(bias.shape)}, not [{rows}]")
    return {"weight": weight, "bias": bias}


def _read_all(path: Path) -> Mapping[str, NDArray[Any]]:
    if path.suffix != ".safetensors":
        return read_tensors(path)
    with TensorFile(path) as tensors:
        tensors.check({name: tensors.describe(name)[0] for name in tensors.names})
        return {name: tensors.read(name) for name in tensors.names}
