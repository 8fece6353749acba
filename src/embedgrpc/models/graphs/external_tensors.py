"""Reads the weights of a graph that `GraphWriter` wrote."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def read_weight(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Return the values of a tensor; mapped from the file if they are not in the graph.

    Args:
        tensor: A tensor of the graph.
        folder: The folder of the graph and its weights.
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
