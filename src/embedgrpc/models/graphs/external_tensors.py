"""Reads the weights of a graph that was written here."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def read_weight(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Reads a tensor of a graph.

    Args:
        tensor: Of the graph.
        folder: Where the graph and its weights are.

    Returns:
        Its values; mapped from the file where they lie outside of the graph.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(
        folder / place["location"],
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
        mode="r",
        offset=int(place["offset"]),
        shape=tuple(tensor.dims),
    )
