"""The names of an exported graph's outputs, and those of ours that they must leave free."""

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import OUTPUTS
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile


def asked_for(
    weight_file: WeightFile, properties: ModelProperties, outputs: Mapping[str, onnx.ValueInfoProto]
) -> str:
    """The output that the configuration asks for; empty where it does not.

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
    """Frees the names of our own outputs; gives the name that a value has then."""
    for ours in OUTPUTS:
        if any(ours in node.output for node in writer.graph.node):
            renamed = writer.vacate(ours)
            name = renamed if name == ours else name
    return name


def as_float(writer: GraphWriter, name: str, described: onnx.ValueInfoProto) -> str:
    """Makes a value float32 whose type the graph tells; gives its name."""
    if described.type.tensor_type.elem_type == TensorProto.FLOAT:
        return name
    return writer.op("Cast", name, to=TensorProto.FLOAT)
