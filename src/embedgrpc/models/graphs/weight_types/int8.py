"""Converts a float32 graph to int8: the products of activations with weights use integers.

Weights become int8 with a scale per column. Where a CPU's products of uint8 with int8 saturate (see
`machine/int8_products.py`), they are stored as uint8: the same integers plus 128. While the graph
runs, each token's activations become uint8 with a scale of their own, so no text's result depends
on the other texts of its batch. Before that, channels with large activations are divided by a
constant, and the weights multiplied by it: see `smoothing.py`.

The tables of token vectors become float16, which takes half the memory. As int8 with a scale per
row they would take a quarter. The default model hardly changed (cosine to float32 0.99932 instead
of 0.99934), but a small cross-encoder lost too much (correlation of its logits 0.9984, not 0.9993).

Source: SmoothQuant (https://arxiv.org/abs/2211.10438), with scales per token and per column; the
operator MatMulIntegerToFloat of ONNX Runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.external_tensors import read_weight
from embedgrpc.models.graphs.weight_types.calibration import measure_activations
from embedgrpc.models.graphs.weight_types.matmuls import convert_matmuls, find_weights
from embedgrpc.models.graphs.weight_types.rounding import round_columns
from embedgrpc.models.graphs.weight_types.smoothing import Smoothing, choose_smoothing
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile

# The first opset in which QuantizeLinear has a scale per row.
_ROW_SCALE_OPSET = 13
_LEAST_SCALE = 1e-12
# Stands for 0 in weights of uint8. Flipping this bit of an int8 adds as much.
_WEIGHT_ZERO = np.uint8(128)
_LARGEST_HALF = float(np.finfo(np.float16).max)


def convert_to_int8(
    graph_path: Path,
    folder: Path,
    weight_file: WeightFile,
    properties: ModelProperties,
    *,
    unsigned: bool,
) -> int:
    """Write the int8 graph of a float32 graph; see `convert_matmuls`.

    Args:
        graph_path: The graph; its weights lie beside it, and its folder can be written to.
        folder: The folder of the copy.
        weight_file: The file that the graph was made from, for messages.
        properties: The model's properties.
        unsigned: Whether to write the weights as uint8. The results are the same where nothing
            saturates; most CPUs with VNNI are faster with int8.
    """
    smoothings: dict[str, Smoothing] = {}
    model = onnx.load(str(graph_path), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = find_weights(model.graph)
    activations: Mapping[str, FloatArray] = {}
    if weights:
        activations = measure_activations(graph_path, list(weights), weight_file, properties)
    for sources, names in _group(weights):
        matrices = [read_weight(tensors[name], graph_path.parent) for name in names]
        chosen = choose_smoothing([activations[source] for source in sources], matrices)
        smoothings.update(dict.fromkeys((*sources, *names), chosen))
    return convert_matmuls(
        graph_path, folder, _Int8(smoothings, unsigned=unsigned), tables=_Tables()
    )


def _group(weights: dict[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """Group activations and weights so that those that are multiplied are in one group.

    Args:
        weights: The names of weights by the activation that they are multiplied with.
    """
    groups: list[tuple[list[str], list[str]]] = []
    for source, names in weights.items():
        sources, together = [source], list(dict.fromkeys(names))
        for group in [one for one in groups if set(one[1]) & set(names)]:
            groups.remove(group)
            sources = [*group[0], *sources]
            together = list(dict.fromkeys([*group[1], *together]))
        groups.append((sources, together))
    return groups


@dataclass(frozen=True, slots=True)
class _Activation:
    """An activation, quantised once for all its products."""

    values: str  # uint8, in the shape of the source
    scale: str  # float32, in the shape of the source with a last axis of length 1
    zero: str  # uint8 []
    exact: str  # float32, the channels that are not quantised; empty for none


@dataclass(frozen=True, slots=True)
class _Weight:
    """A quantised matrix."""

    values: str  # int8 or uint8 [channels, columns]
    scale: str  # float32 [columns]
    exact: str  # float32, the rows that are not quantised; empty for none
    channels: int


class _Tables:
    """Stores tables of vectors as float16, where that loses no number."""

    def __init__(self) -> None:
        self._stored: dict[str, str] = {}

    def write_table(self, writer: GraphWriter, tensor: TensorProto, folder: Path) -> None:
        """Write a table as float16; one with a number that is too large stays float32."""
        values: FloatArray = read_weight(tensor, folder)
        fits = max(values.max(initial=0), -values.min(initial=0)) <= _LARGEST_HALF
        stored = values.astype(np.float16) if fits else values
        self._stored[tensor.name] = writer.weight(stored, f"{tensor.name}_{stored.dtype}")

    def append_rows(self, writer: GraphWriter, node: onnx.NodeProto) -> None:
        """Append the look-up of rows, cast to float32."""
        rows = writer.op("Gather", self._stored[node.input[0]], node.input[1])
        cast = helper.make_node(
            "Cast", [rows], [node.output[0]], name=node.output[0], to=TensorProto.FLOAT
        )
        writer.graph.node.append(cast)


class _Int8:
    """Computes products of uint8 with int8, or with uint8."""

    def __init__(self, smoothings: dict[str, Smoothing], *, unsigned: bool) -> None:
        self._smoothings = smoothings
        self._unsigned = unsigned
        self._activations: dict[str, _Activation] = {}
        self._constants: dict[tuple[str, float], str] = {}

    def write_weight(self, writer: GraphWriter, tensor: TensorProto, folder: Path) -> _Weight:
        """Write a matrix as integers with a scale per column, and its rows that stay float32."""
        values: FloatArray = read_weight(tensor, folder)
        smoothing = self._smoothings[tensor.name]
        integers, scale = round_columns(smoothing.multiply(values))
        exact = ""
        if smoothing.exact.size:
            exact = writer.weight(values[smoothing.exact], f"{tensor.name}_exact")
        stored = (integers.view(np.uint8) ^ _WEIGHT_ZERO) if self._unsigned else integers
        return _Weight(
            writer.weight(stored, f"{tensor.name}_{stored.dtype}"),
            writer.weight(scale, f"{tensor.name}_scale"),
            exact,
            len(values),
        )

    def append_product(self, writer: GraphWriter, node: onnx.NodeProto, weight: _Weight) -> None:
        """Append the product of a quantised activation, scaled back to float32."""
        source = node.input[0]
        if source not in self._activations:
            self._activations[source] = self._quantize(writer, source, weight.channels)
        given = self._activations[source]
        one = self._scalar(writer, 1.0)
        zeros = [given.zero]
        if self._unsigned:
            zeros.append(self._zero(writer, int(_WEIGHT_ZERO)))
        total = writer.microsoft(
            "MatMulIntegerToFloat", given.values, weight.values, one, weight.scale, *zeros
        )
        kind, parts = "Mul", [total, given.scale]
        if weight.exact:
            parts = [writer.op("Mul", *parts), writer.op("MatMul", given.exact, weight.exact)]
            kind = "Add"
        product = helper.make_node(kind, parts, [node.output[0]], name=node.output[0])
        writer.graph.node.append(product)

    def _quantize(self, writer: GraphWriter, source: str, channels: int) -> _Activation:
        """Append the quantisation of an activation, with a scale for each row."""
        smoothing = self._smoothings[source]
        zero_point = smoothing.zero_point
        shape = writer.op("Shape", source)
        exact = ""
        if smoothing.exact.size:
            places = writer.constant(smoothing.exact, "exact_channels")
            exact = writer.op("Gather", source, places, axis=-1)
        if smoothing.exact.size or smoothing.factors is not None:
            factors = smoothing.divide(np.ones((1, channels), np.float32))[0]
            source = writer.op("Mul", source, writer.constant(factors, "smoothing"))
        # Both the largest and the least number of a row must fit.
        above = self._scalar(writer, 1 / (255 - zero_point))
        below = self._scalar(writer, -1 / zero_point)
        scale = writer.op(
            "Max",
            writer.op("Mul", writer.reduce("ReduceMax", source, -1), above),
            writer.op("Mul", writer.reduce("ReduceMin", source, -1), below),
            self._scalar(writer, _LEAST_SCALE),
        )
        zero = self._zero(writer, zero_point)
        if writer.opset < _ROW_SCALE_OPSET:
            steps = writer.op("Div", source, scale)
            values = writer.op("QuantizeLinear", steps, self._scalar(writer, 1.0), zero)
            return _Activation(values, scale, zero, exact)
        # One pass over the numbers less. A scale per row needs two axes.
        rows = writer.reshape(source, [-1, channels])
        scales = writer.reshape(scale, [-1])
        zeros = writer.op("Expand", zero, writer.op("Shape", scales))
        flat = writer.op("QuantizeLinear", rows, scales, zeros, axis=0)
        return _Activation(writer.op("Reshape", flat, shape), scale, zero, exact)

    def _scalar(self, writer: GraphWriter, value: float) -> str:
        key = ("scalar", value)
        if key not in self._constants:
            self._constants[key] = writer.scalar(value)
        return self._constants[key]

    def _zero(self, writer: GraphWriter, value: int) -> str:
        key = ("zero", value)
        if key not in self._constants:
            self._constants[key] = writer.constant(np.array(value, np.uint8), "zero")
        return self._constants[key]
