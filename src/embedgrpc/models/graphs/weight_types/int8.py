"""Converts a float32 graph to int8: dynamic quantisation of its matrix products.

Weights become int8 with a scale per column. Activations become uint8 while the graph runs, with
one scale for the whole batch: a text's vector depends slightly on the other texts of its batch.

Source: the ONNX operators DynamicQuantizeLinear and MatMulInteger; ONNX Runtime fuses each pair.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.external_tensors import read_weight
from embedgrpc.models.graphs.weight_types.matmuls import convert_matmuls
from embedgrpc.models.graphs.writer import GraphWriter

_LEVELS = 127


def convert_to_int8(graph_path: Path, folder: Path) -> int:
    """Write the int8 graph of a float32 graph; see `convert_matmuls`."""
    return convert_matmuls(graph_path, folder, _Int8())


@dataclass(frozen=True, slots=True)
class _Activation:
    """An activation, quantised once for all its products."""

    values: str  # uint8, in the shape of the source
    scale: str  # float32 []
    zero: str  # uint8 []


class _Int8:
    """Computes products of int8 with uint8."""

    def __init__(self) -> None:
        self._activations: dict[str, _Activation] = {}

    def write_weight(
        self, writer: GraphWriter, tensor: TensorProto, folder: Path
    ) -> tuple[str, str]:
        """Write a matrix as int8 with a scale per column, and return the names of both."""
        values: FloatArray = read_weight(tensor, folder)
        largest = np.abs(values).max(axis=0)
        scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
        rounded = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS).astype(np.int8)
        return (
            writer.weight(rounded, f"{tensor.name}_int8"),
            writer.weight(scale, f"{tensor.name}_scale"),
        )

    def append_product(
        self, writer: GraphWriter, node: onnx.NodeProto, weight: tuple[str, str]
    ) -> None:
        """Append the quantised product of an activation, scaled back to float32."""
        activations = self._activations
        source, (matrix, matrix_scale) = node.input[0], weight
        if source not in activations:
            names = [writer.new_name(f"{source}_{part}") for part in ("uint8", "scale", "zero")]
            writer.graph.node.append(helper.make_node("DynamicQuantizeLinear", [source], names))
            activations[source] = _Activation(*names)
        given = activations[source]
        total = writer.op("MatMulInteger", given.values, matrix, given.zero)
        scale = writer.op("Mul", given.scale, matrix_scale)
        floats = writer.op("Cast", total, to=TensorProto.FLOAT)
        product = helper.make_node("Mul", [floats, scale], [node.output[0]], name=node.output[0])
        writer.graph.node.append(product)
