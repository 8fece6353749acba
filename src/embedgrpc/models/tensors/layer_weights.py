"""Finds the weights of a Dense or LayerNorm module."""

from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.shards import open_tensor_file
from embedgrpc.models.tensors.vector_layers import VectorLayer
from embedgrpc.models.tensors.weights import Tensors

# Older releases of the reference wrote the second.
LAYER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def find_layer_weights(layer: VectorLayer) -> Path:
    """Return the file of a module's weights.

    Raises:
        ModelError: There is none.
    """
    for name in LAYER_WEIGHTS:
        if (layer.folder / name).exists():
            return layer.folder / name
    raise ModelError(f"{layer.folder / LAYER_WEIGHTS[0]} is missing")


def open_layer(layer: VectorLayer) -> Tensors:
    """Open a module's weights.

    Raises:
        ModelError: There are none, or they cannot be read.
    """
    return open_tensor_file(find_layer_weights(layer))
