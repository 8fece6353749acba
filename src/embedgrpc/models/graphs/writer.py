"""Writes an ONNX graph node by node, with its weights in a file beside it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedgrpc.models.progress import reporter

WEIGHTS_NAME = "model.weights"
# Prefix of the names of nodes that are never quantised: they run once per text and not once per
# token, or once for the whole model and not once per layer, so quantising them gains nothing.
EXACT_PREFIX = "exact_"

# In bytes; the widest vector instructions read memory with this alignment.
_ALIGNMENT = 64
# Smaller tensors stay in the graph: shapes must, and the others are not worth a file access.
_INLINE_BYTES_MAX = 1024
# From these opsets on, the axes of a reduction are an input instead of an attribute.
_AXES_INPUT_OPSETS = {
    "ReduceSum": 13, "ReduceL2": 18, "ReduceMax": 18, "ReduceMin": 18, "ReduceMean": 18,
}  # fmt: skip
# The domain of the operators that ONNX Runtime has beside the standard ones.
MICROSOFT = "com.microsoft"
# The first opset with an operator LayerNormalization.
_LAYER_NORM_OPSET = 17


class GraphWriter:
    """A context manager that adds nodes and weights to a new or an existing graph.

    Every value gets a unique name. Each weight is written to a file at once, so that memory holds
    one weight at most.
    """

    def __init__(self, folder: Path, graph: onnx.GraphProto, *, opset: int) -> None:
        """Open the file of weights.

        Args:
            folder: The folder of that file.
            graph: The graph to add to; new names differ from those that it has.
            opset: The version of the standard operators that the graph uses.
        """
        self.graph = graph
        self.opset = opset
        self.weight_bytes = 0
        self._weights = (folder / WEIGHTS_NAME).open("wb")
        self._names = {name for node in graph.node for name in node.output}
        self._names.update(tensor.name for tensor in graph.initializer)
        self._names.update(value.name for value in graph.input)
        # ONNX Runtime refuses two nodes of one name, even if their outputs have other names.
        self._names.update(node.name for node in graph.node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.close()

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name.

        Args:
            kind: The operator.
            inputs: Names of its inputs.
            name: The name to derive the output's name from; empty for that of the operator.
            attributes: The operator's attributes.
        """
        output = self.new_name(name or kind)
        self.graph.node.append(
            helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        )
        return output

    def microsoft(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of an operator that only ONNX Runtime has, and return its output's name."""
        return self.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def output(self, source: str, name: str) -> str:
        """Name a value as an output of the graph, and return that name."""
        node_name = self.new_name(name)
        self.graph.node.append(helper.make_node("Identity", [source], [name], name=node_name))
        return name

    def publish(self, source: str, name: str) -> str:
        """Rename a value to an output of the graph, and return that name.

        Other than `output`, this adds no node, which would copy the value in every run: ONNX
        Runtime keeps an Identity whose input has further uses.

        Args:
            source: The name of a node's output, which is no output of the graph yet.
            name: A name that no value has.
        """
        self._replace(source, name)
        return name

    def reduce(self, kind: str, source: str, axis: int) -> str:
        """Add a reduction over one axis, which stays with length 1."""
        if self.opset >= _AXES_INPUT_OPSETS[kind]:
            axes = self.constant(np.array([axis], dtype=np.int64), "axes")
            return self.op(kind, source, axes, keepdims=1)
        return self.op(kind, source, axes=[axis], keepdims=1)

    def layer_norm(self, source: str, scale: str, shift: str, *, epsilon: float) -> str:
        """Add a layer normalisation over the last axis."""
        if self.opset >= _LAYER_NORM_OPSET:
            return self.op("LayerNormalization", source, scale, shift, axis=-1, epsilon=epsilon)
        centred = self.op("Sub", source, self.reduce("ReduceMean", source, -1))
        squares = self.op("Mul", centred, centred)
        variance = self.reduce("ReduceMean", squares, -1)
        deviation = self.op("Sqrt", self.op("Add", variance, self.scalar(epsilon)))
        scaled = self.op("Mul", self.op("Div", centred, deviation), scale)
        return self.op("Add", scaled, shift)

    def reshape(self, source: str, shape: Sequence[int]) -> str:
        """Add a change of shape: 0 keeps an axis, -1 stands for the remaining length."""
        return self.op("Reshape", source, self.constant(np.array(shape, dtype=np.int64), "shape"))

    def scale_to_unit(self, vectors: str) -> str:
        """Scale vectors, float32 [..., dimensions], to length 1; zeros stay zeros.

        Source: torch.nn.functional.normalize, x / max(|x|, 1e-12).
        """
        length = self.op("Max", self.reduce("ReduceL2", vectors, -1), self.scalar(1e-12))
        return self.op("Div", vectors, length)

    def scalar(self, value: float) -> str:
        """Add a float32 number."""
        return self.constant(np.array(value, dtype=np.float32), "scalar")

    def constant(self, values: NDArray[Any], name: str) -> str:
        """Add a small tensor, and keep it in the graph."""
        name = self.new_name(name)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, values: NDArray[Any], name: str) -> str:
        """Add a weight of any shape and any dtype of ONNX, and return its name."""
        if values.nbytes <= _INLINE_BYTES_MAX:
            self.weight_bytes += values.nbytes
            return self.constant(values, name)
        name = self.new_name(name)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape,
        )
        self._write(tensor, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        self.graph.initializer.append(tensor)
        return name

    def move_out(self, tensor: TensorProto, values: NDArray[np.uint8]) -> None:
        """Move the values of a tensor of the graph to the file of weights.

        Args:
            tensor: The tensor.
            values: uint8 [bytes], its values.
        """
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            tensor.ClearField(field)
        del tensor.external_data[:]
        self._write(tensor, values)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Put the nodes added inside the `with` block before all nodes that the graph has."""
        present = list(self.graph.node)
        del self.graph.node[:]
        yield
        self.graph.node.extend(present)

    def vacate(self, name: str) -> str:
        """Rename a value of the graph, so that its name is free, and return the new name.

        Args:
            name: The name of a node's output or of an input of the graph.
        """
        renamed = self.new_name(f"{name}_exported")
        self._replace(name, renamed)
        return renamed

    def _replace(self, name: str, renamed: str) -> None:
        _rename(self.graph.node, name, renamed)
        described = [value for value in self.graph.value_info if value.name != name]
        del self.graph.value_info[:]
        self.graph.value_info.extend(described)

    def _write(self, tensor: TensorProto, values: NDArray[np.uint8]) -> None:
        offset = -(-self._weights.tell() // _ALIGNMENT) * _ALIGNMENT
        self._weights.seek(offset)
        self._weights.write(values.data)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": WEIGHTS_NAME, "offset": offset, "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.weight_bytes += values.nbytes
        reporter.advance(values.nbytes)

    def new_name(self, name: str) -> str:
        """Return an unused name: the given one, with a number added if it is taken."""
        number, unique = 0, name
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique


def import_domains(model: onnx.ModelProto) -> None:
    """Declare the operators that only ONNX Runtime has, if the model uses one."""
    domains = {entry.domain for entry in model.opset_import}
    if MICROSOFT not in domains and any(node.domain == MICROSOFT for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _rename(nodes: Iterable[onnx.NodeProto], name: str, renamed: str) -> None:
    for node in nodes:
        node.input[:] = [renamed if source == name else source for source in node.input]
        node.output[:] = [renamed if output == name else output for output in node.output]
        for attribute in node.attribute:
            # Branches of conditions and bodies of loops use values of the graph around them.
            for graph in (attribute.g, *attribute.graphs):
                _rename(graph.node, name, renamed)
