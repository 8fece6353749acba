"""Rewrites the products of activations with weights, to compute them in another type.

A conversion may also store the tables of token vectors in another type. All else stays float32:
attention between tokens, normalisations, poolings, the layers after.
"""

from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.graphs.external_tensors import read_weight
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter, import_domains

Weight = TypeVar("Weight")

_MATRIX_RANK = 2
_COLUMNS_MIN = 8
# Smaller tables, as those of positions and types are in most models, take little memory.
_TABLE_ROWS_MIN = 1024


class TableConversion(Protocol):
    """Stores the tables of one graph, of which `Gather(table, ids)` takes rows."""

    def write_table(self, writer: GraphWriter, tensor: TensorProto, folder: Path) -> None:
        """Write the table, whose values lie in the folder, in its new form."""
        ...

    def append_rows(self, writer: GraphWriter, node: onnx.NodeProto) -> None:
        """Append nodes that make the output of a look-up, float32."""
        ...


class Conversion(Protocol[Weight]):
    """Converts the products `MatMul(x, matrix)` of one graph."""

    def write_weight(self, writer: GraphWriter, tensor: TensorProto, folder: Path) -> Weight:
        """Write the matrix, whose values lie in the folder, in its new form."""
        ...

    def append_product(self, writer: GraphWriter, node: onnx.NodeProto, weight: Weight) -> None:
        """Append nodes that make the product's output, float32."""
        ...


def convert_matmuls(
    graph_path: Path,
    folder: Path,
    conversion: Conversion[Weight],
    *,
    tables: TableConversion | None = None,
) -> int:
    """Write a copy of a float32 graph with converted products.

    Args:
        graph_path: The graph; its weights lie beside it.
        folder: The folder of the copy, which has the same name.
        conversion: Converts the weights and the products.
        tables: Converts the tables of token vectors; None to leave them.

    Returns:
        The size of the copy's weights, in bytes.

    Raises:
        ModelError: The graph has no product with a matrix of float32 weights.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    converted = {name for names in find_weights(graph).values() for name in names}
    if not converted:
        raise ModelError(
            f"{graph_path}: there are no float32 weights to convert: leave weight_type at float32"
        )
    looked_up = find_tables(graph) if tables else frozenset()
    nodes = list(graph.node)
    tensors = list(graph.initializer)
    with GraphWriter(folder, graph, opset=opset) as writer:
        # Now that the writer knows their names.
        del graph.initializer[:]
        weights: dict[str, Weight] = {}
        for tensor in tensors:
            if tensor.name in converted:
                weights[tensor.name] = conversion.write_weight(writer, tensor, graph_path.parent)
                continue
            if tables and tensor.name in looked_up:
                tables.write_table(writer, tensor, graph_path.parent)
                continue
            if tensor.data_location == TensorProto.EXTERNAL:
                values = read_weight(tensor, graph_path.parent)
                writer.move_out(tensor, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            else:
                writer.weight_bytes += len(tensor.raw_data)
            graph.initializer.append(tensor)
        del graph.node[:]
        for node in nodes:
            if _is_product(node, converted):
                conversion.append_product(writer, node, weights[node.input[1]])
            elif tables and node.op_type == "Gather" and node.input[0] in looked_up:
                tables.append_rows(writer, node)
            else:
                graph.node.append(node)
    import_domains(model)
    (folder / graph_path.name).write_bytes(model.SerializeToString())
    return writer.weight_bytes


def find_weights(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Return the weights to convert, by the activation that they are multiplied with.

    They are float32 matrices without another use. Weights of exact products are left out, and those
    with few columns, as classifiers have them: they take no time.
    """
    matrices = _find_matrices(graph)
    used_otherwise = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if not (node.op_type == "MatMul" and place == 1)
    }
    exact = {node.input[1] for node in graph.node if node.name.startswith(EXACT_PREFIX)}
    wanted = matrices - used_otherwise - exact
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if _is_product(node, wanted):
            found.setdefault(node.input[0], []).append(node.input[1])
    return found


def find_tables(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the large float32 tables of which rows are looked up, and that have no other use."""
    found = _find_matrices(graph, rows_min=_TABLE_ROWS_MIN)
    used_otherwise = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if not (node.op_type == "Gather" and place == 0 and _axis_of(node) == 0)
    }
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    return frozenset((found & looked_up) - used_otherwise)


def _find_matrices(graph: onnx.GraphProto, *, rows_min: int = 0) -> set[str]:
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == _MATRIX_RANK
        and tensor.dims[0] >= rows_min
        and tensor.dims[1] >= _COLUMNS_MIN
    }


def _axis_of(node: onnx.NodeProto) -> int:
    return next((one.i for one in node.attribute if one.name == "axis"), 0)


def _is_product(node: onnx.NodeProto, matrices: set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in matrices
