"""Handles the names in exports: those of outputs may collide with our own."""

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import OUTPUTS
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile

# Axes of an output with one vector per text, and of one with a vector per token.
VECTOR_RANK = 2
TOKEN_RANK = 3


def configured_output(
    weight_file: WeightFile, properties: ModelProperties, outputs: Mapping[str, onnx.ValueInfoProto]
) -> str:
    """Return the output that the configuration asks for; empty if it asks for none.

    Raises:
        ModelError: The graph has no such output.
    """
    if properties.output and properties.output not in outputs:
        raise ModelError(
            f"{weight_file.path}: output is set to {properties.output!r}, but the graph's outputs "
            f"are {', '.join(outputs)}"
        )
    return properties.output


def clear_names(writer: GraphWriter, name: str) -> str:
    """Free the names of our own outputs, and return the name that a value has afterwards."""
    for ours in OUTPUTS:
        if any(ours in node.output for node in writer.graph.node):
            renamed = writer.vacate(ours)
            name = renamed if name == ours else name
    return name


def as_float(writer: GraphWriter, name: str, described: onnx.ValueInfoProto) -> str:
    """Cast a value to float32 if it has another type, and return its name."""
    if described.type.tensor_type.elem_type == TensorProto.FLOAT:
        return name
    return writer.op("Cast", name, to=TensorProto.FLOAT)


def values_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads, also inside of its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from values_read(inner)
            # A branch may return a value of the graph around it.
            yield from (value.name for value in graph.output)
