"""Makes the graph that is served: a backbone, built or imported, and the model's head.

This is the only way to the `onnx` package, which a start from the cache does not load.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from embedgrpc.models import bert
from embedgrpc.models.exported_head import check_sentence_embedding, find_hidden, find_logits
from embedgrpc.models.graph_writer import GraphWriter
from embedgrpc.models.heads import append_embedding_head
from embedgrpc.models.imported import move_weights, read_graph
from embedgrpc.models.json_file import JsonObject
from embedgrpc.models.metadata import Kind, ModelMetadata
from embedgrpc.models.origin import Format, Origin
from embedgrpc.models.outputs import LOGITS
from embedgrpc.models.weights import TensorFile

GRAPH_NAME = "model.onnx"

# Old enough for other runtimes; LayerNormalization is a single operator since this version.
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph that was written to a folder.

    Attributes:
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        weight_type: What most of its weights are, such as "float32".
        weight_bytes: Their size.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_type: str
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build the graphs of one architecture from safetensors.

    Attributes:
        inputs: Names of the graph's inputs.
        build: Adds the backbone, and gives the name of its token vectors.
        build_classifier: Adds the cross-encoder's head, and gives the name of its logits.
    """

    inputs: tuple[str, ...]
    build: Callable[[GraphWriter, TensorFile, JsonObject], str]
    build_classifier: Callable[[GraphWriter, TensorFile, JsonObject, str], str]


ARCHITECTURES = {"bert": Architecture(bert.INPUTS, bert.build, bert.build_classifier)}


def build_graph(origin: Origin, metadata: ModelMetadata, folder: Path) -> BuiltGraph:
    """Writes the graph of a model and its weights to an empty folder.

    Args:
        origin: What to make it from.
        metadata: What the model is.
        folder: Where to write.

    Returns:
        What was written.

    Raises:
        ModelError: The origin cannot be used, or does not fit the metadata.
    """
    if origin.format is Format.ONNX:
        return _import(origin, metadata, folder)
    architecture = ARCHITECTURES.get(metadata.model_type)
    config = JsonObject(path=origin.folder / "config.json", values=metadata.config)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise config.wrong("model_type", f"one of {known} where there is no onnx/model.onnx")
    graph = onnx.GraphProto(name=metadata.model_type)
    _describe_inputs(graph, architecture.inputs)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    with (
        TensorFile(origin.path) as tensors,
        GraphWriter(folder, model.graph, opset=_OPSET) as writer,
    ):
        hidden = architecture.build(writer, tensors, config)
        if metadata.kind is Kind.CROSS_ENCODER:
            logits = architecture.build_classifier(writer, tensors, config, hidden)
            outputs: tuple[str, ...] = (writer.output(logits, LOGITS),)
        else:
            outputs = _append_head(writer, metadata, hidden)
    _save(model, folder, outputs, metadata)
    return BuiltGraph(architecture.inputs, outputs, "float32", writer.weight_bytes)


def _import(origin: Origin, metadata: ModelMetadata, folder: Path) -> BuiltGraph:
    imported = read_graph(origin)
    model = imported.model
    with GraphWriter(folder, model.graph, opset=imported.opset) as writer:
        move_weights(writer, origin, model)
        if metadata.kind is Kind.CROSS_ENCODER:
            outputs: tuple[str, ...] = (find_logits(writer, origin),)
            exported = None
        else:
            hidden, exported = find_hidden(writer, origin, metadata)
            outputs = _append_head(writer, metadata, hidden)
    if exported is not None:
        _save(model, folder, (*outputs, exported), metadata)
        check_sentence_embedding(folder / GRAPH_NAME, origin, metadata, outputs, exported)
    _save(model, folder, outputs, metadata)
    return BuiltGraph(imported.inputs, outputs, imported.weight_type, writer.weight_bytes)


def _append_head(writer: GraphWriter, metadata: ModelMetadata, hidden: str) -> tuple[str, ...]:
    return append_embedding_head(
        writer,
        hidden=hidden,
        attention_mask="attention_mask",
        hidden_size=metadata.dimensions // len(metadata.poolings),
        poolings=metadata.poolings,
        normalize=metadata.normalize,
    )


def _describe_inputs(graph: onnx.GraphProto, names: tuple[str, ...]) -> None:
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in names
    )


def _save(
    model: onnx.ModelProto, folder: Path, outputs: tuple[str, ...], metadata: ModelMetadata
) -> None:
    size = 1 if metadata.kind is Kind.CROSS_ENCODER else metadata.dimensions
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in outputs
    )
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString())
