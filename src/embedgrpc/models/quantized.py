"""Makes an int8 graph of a float32 one: dynamic quantisation of its matrix products.

Weights become int8 with a scale per column; what they are multiplied with becomes uint8 while the
graph runs, with one scale for the whole batch. So the vector of a text depends, a little, on what
it is batched with. Attention, normalisations, poolings and the layers after them stay float32.

Source: the ONNX operators DynamicQuantizeLinear and MatMulInteger; ONNX Runtime makes one step of
each pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.external_tensors import read_weight
from embedgrpc.models.graph_writer import EXACT_PREFIX, GraphWriter

_LEVELS = 127
_MATRIX_RANK = 2


def quantize(graph_path: Path, folder: Path) -> int:
    """Writes the int8 graph of a float32 graph.

    Args:
        graph_path: The graph; its weights lie beside it.
        folder: Where to write the other, under the same name.

    Returns:
        The bytes of its weights.

    Raises:
        ModelError: The graph has no product with a matrix of float32 weights.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    products = {id(node): node for node in _find_products(graph)}
    if not products:
        raise ModelError(
            f"{graph_path}: there are no float32 weights to quantise: leave weight_type at float32"
        )
    quantized = {node.input[1] for node in products.values()}
    nodes = list(graph.node)
    tensors = list(graph.initializer)
    del graph.initializer[:]
    with GraphWriter(folder, graph, opset=opset) as writer:
        weights: dict[str, tuple[str, str]] = {}
        for tensor in tensors:
            if tensor.name in quantized:
                weights[tensor.name] = _write_weight(writer, tensor, graph_path.parent)
                continue
            if tensor.data_location == TensorProto.EXTERNAL:
                values = read_weight(tensor, graph_path.parent)
                writer.move_out(tensor, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            else:
                writer.weight_bytes += len(tensor.raw_data)
            graph.initializer.append(tensor)
        del graph.node[:]
        activations: dict[str, _Activation] = {}
        for node in nodes:
            if _is_product(node, quantized):
                _append_product(writer, node, weights[node.input[1]], activations)
            else:
                graph.node.append(node)
    (folder / graph_path.name).write_bytes(model.SerializeToString())
    return writer.weight_bytes


@dataclass(frozen=True, slots=True)
class _Activation:
    """What a matrix is multiplied with, quantised once for all products."""

    values: str  # uint8, as the source is shaped
    scale: str  # float32 []
    zero: str  # uint8 []


def _find_products(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The products whose weights are used as such and nowhere else."""
    matrices = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == _MATRIX_RANK
    }
    used_otherwise = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if not (node.op_type == "MatMul" and place == 1)
    }
    exact = {node.input[1] for node in graph.node if node.name.startswith(EXACT_PREFIX)}
    for node in graph.node:
        if _is_product(node, matrices - used_otherwise - exact):
            yield node


def _is_product(node: onnx.NodeProto, matrices: set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in matrices


def _write_weight(writer: GraphWriter, tensor: TensorProto, folder: Path) -> tuple[str, str]:
    """Writes a matrix as int8 with a scale per column; gives the names of both."""
    values: NDArray[np.float32] = read_weight(tensor, folder)
    largest = np.abs(values).max(axis=0)
    scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
    rounded = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return (
        writer.weight(rounded, f"{tensor.name}_int8"),
        writer.weight(scale, f"{tensor.name}_scale"),
    )


def _append_product(
    writer: GraphWriter,
    node: onnx.NodeProto,
    weight: tuple[str, str],
    activations: dict[str, _Activation],
) -> None:
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
