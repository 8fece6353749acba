"""Converts a float32 graph to float16 for GPUs: weights and their products in half precision.

Activations are rounded to float16 before a product, and the product is cast to float32 at once, so
that sums, normalisations and poolings keep their range.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.graphs.external_tensors import read_weight
from embedgrpc.models.graphs.weight_types.matmuls import convert_matmuls
from embedgrpc.models.graphs.writer import GraphWriter

_LARGEST = float(np.finfo(np.float16).max)


def convert_to_float16(graph_path: Path, folder: Path) -> int:
    """Write the float16 graph of a float32 graph; see `convert_matmuls`.

    Raises:
        ModelError: A weight is too large for float16.
    """
    return convert_matmuls(graph_path, folder, _Float16())


class _Float16:
    """Computes products of float16 with float16."""

    def __init__(self) -> None:
        self._rounded: dict[str, str] = {}

    def write_weight(self, writer: GraphWriter, tensor: TensorProto, folder: Path) -> str:
        """Write a matrix as float16, and return its name."""
        values: FloatArray = read_weight(tensor, folder)
        largest = float(np.abs(values).max(initial=0))
        if largest > _LARGEST:
            raise ModelError(
                f"weight {tensor.name!r} holds {largest:.3g}, which float16 cannot: leave"
                " weight_type at float32"
            )
        return writer.weight(values.astype(np.float16), f"{tensor.name}_float16")

    def append_product(self, writer: GraphWriter, node: onnx.NodeProto, weight: str) -> None:
        """Append a product in float16, cast to float32."""
        source = node.input[0]
        if source not in self._rounded:
            self._rounded[source] = writer.op("Cast", source, to=TensorProto.FLOAT16)
        product = writer.op("MatMul", self._rounded[source], weight)
        writer.graph.node.append(
            helper.make_node(
                "Cast", [product], [node.output[0]], name=node.output[0], to=TensorProto.FLOAT
            )
        )
