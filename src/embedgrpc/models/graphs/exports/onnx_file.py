"""Reads an exported ONNX file: checks its graph and copies its weights."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import open_file
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile, find_external

# The operators of our heads have the form of this version.
_OPSET_MIN = 11
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "MatMulNBits",
     "DynamicQuantizeMatMul", "QAttention", "MatMulIntegerToFloat"}
)  # fmt: skip
_TYPES = frozenset(helper.get_all_tensor_dtypes())
_MOVED_BYTES_MIN = 1024


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """An exported graph that passed the checks.

    Attributes:
        model: The graph, without its external weights.
        opset: The version of its standard operators.
        weight_type: The type of most of its weights, such as "float32".
        quantized: Whether it computes with integers.
    """

    model: onnx.ModelProto
    opset: int
    weight_type: str
    quantized: bool


def read_export(weight_file: WeightFile, *, may_be_quantized: bool) -> ExportedGraph:
    """Read a graph and check that it can be served.

    Args:
        weight_file: The ONNX file.
        may_be_quantized: Whether a quantised graph is accepted: the configuration names the file.

    Raises:
        ModelError: It is not an ONNX file, its opset is too old, or it is quantised and must not
            be.
    """
    model = load_proto(weight_file)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < _OPSET_MIN:
        raise ModelError(
            f"{weight_file.path}: opset {opset} is older than {_OPSET_MIN}: export it again"
        )
    quantized = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if quantized and not may_be_quantized:
        raise ModelError(
            f"{weight_file.path} is quantised ({quantized[0]}): set file for this model in the "
            "configuration if it is wanted"
        )
    return ExportedGraph(model, opset, find_weight_type(model), bool(quantized))


def load_proto(weight_file: WeightFile) -> onnx.ModelProto:
    """Read an ONNX file, but not the external files that it names.

    Raises:
        ModelError: It is not an ONNX file.
    """
    try:
        with open_file(weight_file.path, weight_file.root) as file:
            model = onnx.load_model_from_string(file.read())
    except (DecodeError, OSError) as error:
        raise ModelError(f"{weight_file.path} is not an ONNX file") from error
    if not model.graph.node:
        raise ModelError(f"{weight_file.path} is not an ONNX file: it holds no graph")
    if not _is_text(model):
        raise ModelError(f"{weight_file.path} is not an ONNX file: a name in it is not UTF-8")
    for tensor in model.graph.initializer:
        if tensor.data_type not in _TYPES:
            raise ModelError(
                f"{weight_file.path}: {tensor.name!r} has type {tensor.data_type}, which ONNX lacks"
            )
    return model


def _is_text(message: Message) -> bool:
    """Return whether all text fields hold text: the parser returns invalid UTF-8 as bytes."""
    for name, repeated, is_message in _text_fields(message.DESCRIPTOR):
        if is_message and not repeated and not message.HasField(name):
            continue
        value = getattr(message, name)
        for part in value if repeated else (value,):
            if not (_is_text(part) if is_message else isinstance(part, str)):
                return False
    return True


@cache
def _text_fields(descriptor: Descriptor) -> tuple[tuple[str, bool, bool], ...]:
    """Return the fields that are or hold text: name, whether repeated, whether a message."""
    held = {FieldDescriptor.TYPE_STRING: False, FieldDescriptor.TYPE_MESSAGE: True}
    return tuple(
        (field.name, field.is_repeated, held[field.type])
        for field in descriptor.fields
        if field.type in held
    )


def input_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of a graph's inputs."""
    return tuple(value.name for value in model.graph.input)


def external_locations(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the external files of a graph's weights, without duplicates."""
    locations = {
        _place(tensor).get("location", "")
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
    }
    return tuple(sorted(locations))


def move_weights(writer: GraphWriter, weight_file: WeightFile, model: onnx.ModelProto) -> None:
    """Copy all large tensors of a graph to the writer's file, one after the other.

    Args:
        writer: The writer of the same graph.
        weight_file: The ONNX file.
        model: The graph, as read from that file.

    Raises:
        ModelError: An external file is missing, too short, or outside the model's folder.
    """
    for tensor in _nested_tensors(model):
        # Few readers support external files for other tensors than the graph's own weights.
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _read_external(weight_file, tensor).tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            writer.move_out(tensor, _read_external(weight_file, tensor))
        elif len(tensor.raw_data) > _MOVED_BYTES_MIN:
            writer.move_out(tensor, np.frombuffer(tensor.raw_data, dtype=np.uint8))
        elif len(tensor.float_data) * 4 > _MOVED_BYTES_MIN:
            writer.move_out(tensor, np.array(tensor.float_data, dtype="<f4").view(np.uint8))
        else:
            writer.weight_bytes += len(tensor.raw_data)


def read_tensor(weight_file: WeightFile, tensor: TensorProto) -> NDArray[np.generic]:
    """Return the values of a weight; those of an external file are read where they are used.

    Raises:
        ModelError: An external file is missing, too short, or outside the model's folder, or the
            values do not have the tensor's shape.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    values = _read_external(weight_file, tensor).view(
        helper.tensor_dtype_to_np_dtype(tensor.data_type)
    )
    return values.reshape(tuple(tensor.dims))


def _read_external(weight_file: WeightFile, tensor: TensorProto) -> NDArray[np.uint8]:
    place = _place(tensor)
    path = find_external(weight_file, place.get("location", ""))
    size = path.stat().st_size
    try:
        offset = int(place.get("offset", 0))
        length = int(place.get("length", size - offset))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{weight_file.path}: external data {path.name!r} is too short for {tensor.name!r}"
        )
    if not length:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,))


def _place(tensor: TensorProto) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    yield from _nested_tensors(model)


def _nested_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield all tensors of a graph except its own weights, wherever a message can hold one."""
    yield from _sparse_tensors(model.graph.sparse_initializer)
    yield from _node_tensors(model.graph.node)
    for function in model.functions:
        yield from _node_tensors(function.node)
        # The defaults of the function's attributes.
        yield from _attribute_tensors(function.attribute_proto)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    return _attribute_tensors(itertools.chain.from_iterable(node.attribute for node in nodes))


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _sparse_tensors([attribute.sparse_tensor])
        yield from _sparse_tensors(attribute.sparse_tensors)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _sparse_tensors(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def find_weight_type(model: onnx.ModelProto) -> str:
    """Return the type of most of the weights of a graph, such as "float32"."""
    sizes: dict[int, int] = {}
    for tensor in model.graph.initializer:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + count
    if not sizes:
        return "float32"
    return str(helper.tensor_dtype_to_np_dtype(max(sizes, key=lambda kind: sizes[kind])))
