"""Cuts the vocabulary head off an exported causal model.

The head computes a logit for every entry of the vocabulary and every token: for 4,096 tokens of a
Qwen3 model, 2.5 GB. A reranker needs one or two of them, so only their weights are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.exports.names import TOKEN_RANK, configured_output, values_read
from embedgrpc.models.graphs.exports.onnx_file import read_tensor
from embedgrpc.models.graphs.heads.logit_score import Step, TokenRows
from embedgrpc.models.graphs.outputs import LOGITS
from embedgrpc.models.sources.weight_file import WeightFile

_PASSING = frozenset({"Identity", "Cast"})
_ADVICE = "export the model again in float32, as the exporter of optimum-onnx does it"
# The weight of a head as a matrix product has it, and as an embedding table has it.
_COLUMNS, _ROWS = 1, 0
_MATRIX = 2


def cut_vocabulary_head(
    model: onnx.ModelProto, weight_file: WeightFile, properties: ModelProperties
) -> tuple[str, TokenRows] | None:
    """Remove the vocabulary head of a causal model, and everything that only it needs.

    Returns:
        The name of the token vectors, [batch, tokens, hidden_size], and the weights to keep; None
        if the model does not score by logits of tokens.

    Raises:
        ModelError: The graph has no logits of all tokens, or they are not the product of token
            vectors and a matrix.
    """
    graph = model.graph
    score = properties.logit_score
    if score is None:
        return None
    outputs = {value.name: value for value in graph.output}
    name = configured_output(weight_file, properties, outputs) or LOGITS
    dims = list(outputs[name].type.tensor_type.shape.dim) if name in outputs else []
    if len(dims) != TOKEN_RANK or dims[1].HasField("dim_value"):
        raise ModelError(
            f"{weight_file.path}: the graph's outputs are {', '.join(outputs)}; one must be "
            f"{LOGITS}, of shape [batch, tokens, vocabulary]"
        )
    hidden, head = _Head(graph, weight_file, score.token_ids).find(name)
    _keep(graph, hidden)
    return hidden, head


@dataclass(frozen=True)
class _Head:
    """The end of a graph, from the vectors of tokens to their logits."""

    graph: onnx.GraphProto
    weight_file: WeightFile
    token_ids: Sequence[int]

    def find(self, name: str) -> tuple[str, TokenRows]:
        """Return the token vectors that a value is made of, and the head for the tokens."""
        producers = {output: node for node in self.graph.node for output in node.output}
        steps: list[Step] = []
        while (node := producers.get(name)) is not None:
            if node.op_type == "MatMul":
                rows = self._read_rows(node.input[1], producers)
                return node.input[0], TokenRows(rows, steps[::-1])
            if node.op_type == "Tanh":
                steps.append(Step("Tanh"))
            elif node.op_type not in _PASSING:
                name = self._add_step(node, producers, steps)
                continue
            name = node.input[0]
        raise self._wrong(node)

    def _add_step(
        self, node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], steps: list[Step]
    ) -> str:
        """Add an operation with a constant, and return its other operand."""
        if node.op_type not in {"Add", "Sub", "Mul", "Div"}:
            raise self._wrong(node)
        place = 1
        operand = self._read_constant(node.input[1], producers)
        if operand is None and node.op_type in {"Add", "Mul"}:
            place = 0
            operand = self._read_constant(node.input[0], producers)
        if operand is None:
            raise self._wrong(node)
        values = operand.reshape(-1)
        if len(values) > 1:
            if len(values) <= max(self.token_ids):
                raise self._wrong(node)
            values = values[list(self.token_ids)]
        steps.append(Step(node.op_type, values.astype(np.float32)))
        return node.input[1 - place]

    def _read_rows(self, name: str, producers: Mapping[str, onnx.NodeProto]) -> FloatArray:
        """Return the rows of the tokens, float32 [tokens, hidden_size]."""
        axis = _COLUMNS
        while (node := producers.get(name)) is not None:
            if node.op_type == "Transpose":
                axis = 1 - axis
            elif node.op_type not in {*_PASSING, "Constant"}:
                raise self._wrong(node)
            if node.op_type == "Constant":
                break
            name = node.input[0]
        matrix = self._read_constant(name, producers)
        if matrix is None or matrix.ndim != _MATRIX or matrix.shape[axis] <= max(self.token_ids):
            raise self._wrong(node)
        ids = list(self.token_ids)
        rows = matrix[ids] if axis == _ROWS else matrix[:, ids].T
        return np.ascontiguousarray(rows, np.float32)

    def _read_constant(
        self, name: str, producers: Mapping[str, onnx.NodeProto]
    ) -> NDArray[np.generic] | None:
        """Return the values of a weight or constant of floating point; None for other values."""
        node = producers.get(name)
        while node is not None and node.op_type in _PASSING:
            name = node.input[0]
            node = producers.get(name)
        if node is None:
            tensor = next((one for one in self.graph.initializer if one.name == name), None)
            values = None if tensor is None else read_tensor(self.weight_file, tensor)
        elif node.op_type == "Constant":
            values = next(
                (numpy_helper.to_array(one.t) for one in node.attribute if one.name == "value"),
                None,
            )
        else:
            values = None
        # Integers would be quantised weights.
        return None if values is None or values.dtype.kind in "iub" else values

    def _wrong(self, node: onnx.NodeProto | None) -> ModelError:
        found = node.op_type if node is not None else "nothing"
        return ModelError(
            f"{self.weight_file.path}: the logits must be the product of token vectors and one "
            f"matrix of floating point numbers, but the graph has {found} there: {_ADVICE}"
        )


def _keep(graph: onnx.GraphProto, name: str) -> None:
    """Remove the nodes and weights that a value does not need."""
    producers = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()
    pending = [name]
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        needed.add(value)
        node = producers.get(value)
        if node is not None:
            needed.update(node.output)
            pending.extend(values_read(node))
    nodes = [node for node in graph.node if any(output in needed for output in node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {value for node in nodes for value in values_read(node)}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
