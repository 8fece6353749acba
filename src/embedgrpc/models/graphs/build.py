"""Builds the graph that is served: a backbone, built or exported, and the model's head.

Imports the `onnx` package; a start from the cache must not import this module.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from embedgrpc.machine.int8_products import saturates
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.prompts import TASKS_KEY
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.weight_table import WeightTable
from embedgrpc.models.graphs.encoders import encoder
from embedgrpc.models.graphs.encoders.backbone import build_backbone
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.graphs.encoders.mlm_head import build_mlm_head
from embedgrpc.models.graphs.encoders.model_types import INPUTS
from embedgrpc.models.graphs.encoders.rotary_encoder import build_rotary_classifier
from embedgrpc.models.graphs.encoders.rotary_families import ROTARY_FAMILIES
from embedgrpc.models.graphs.encoders.token_rows import append_mask, append_rows
from embedgrpc.models.graphs.encoders.weight_look_up import append_look_up, read_table_weights
from embedgrpc.models.graphs.exports.inputs import bind_inputs
from embedgrpc.models.graphs.exports.logits import (
    check_vocabulary,
    find_logits,
    find_token_logits,
)
from embedgrpc.models.graphs.exports.m3 import (
    adopt_m3_outputs,
    check_m3_outputs,
    find_m3_hidden,
    find_m3_outputs,
)
from embedgrpc.models.graphs.exports.names import clear_names
from embedgrpc.models.graphs.exports.onnx_file import move_weights, read_export
from embedgrpc.models.graphs.exports.vectors import (
    check_no_heads,
    check_pooled,
    check_sentence_embedding,
    find_hidden,
    find_pooled,
    find_token_vectors,
)
from embedgrpc.models.graphs.exports.vocabulary_head import cut_vocabulary_head
from embedgrpc.models.graphs.heads.last_token import append_last_token_logits
from embedgrpc.models.graphs.heads.logit_score import (
    TokenRows,
    append_logit_score,
    read_token_rows,
)
from embedgrpc.models.graphs.heads.pooling import append_embedding_head, append_outputs
from embedgrpc.models.graphs.heads.token_outputs import (
    append_projected_tokens,
    append_token_embeddings,
    append_token_weights,
    append_vocabulary_weights,
)
from embedgrpc.models.graphs.merged_weights import open_merged
from embedgrpc.models.graphs.output_sizes import output_sizes
from embedgrpc.models.graphs.outputs import LOGITS, PROMPT_TOKENS, TOKEN_VECTORS
from embedgrpc.models.graphs.probe import check_batching
from embedgrpc.models.graphs.weight_types.float16 import convert_to_float16
from embedgrpc.models.graphs.weight_types.int8 import convert_to_int8
from embedgrpc.models.graphs.writer import GraphWriter, import_domains
from embedgrpc.models.kinds import Kind, WeightType
from embedgrpc.models.sources.weight_file import Format, WeightFile, open_tensors
from embedgrpc.models.tensors.weights import Tensors

GRAPH_NAME = "model.onnx"

# How far a text's result may depend on its batch, relative to the largest value. Integers have a
# scale that all texts of a batch share.
_TOLERANCES = {"float32": 1e-3}
_HALF_TOLERANCE = 3e-2
_QUANTIZED_TOLERANCE = 0.5
# Known to older runtimes, and the first with an operator LayerNormalization.
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph that was written to a folder.

    Attributes:
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        weight_type: The type of most of its weights, such as "float32".
        weight_bytes: The size of its weights.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_type: str
    weight_bytes: int


def build_graph(weight_file: WeightFile, properties: ModelProperties, folder: Path) -> BuiltGraph:
    """Write the graph of a model, built or exported, and its weights to an empty folder.

    Raises:
        ModelError: The file cannot be used, or does not fit the properties.
    """
    if properties.table is not None:
        return _build_table(weight_file, properties, properties.table, folder)
    if properties.weight_table is not None:
        return _build_look_up(weight_file, properties, properties.weight_table, folder)
    if properties.weight_type is WeightType.FLOAT32:
        return _build_plain(weight_file, properties, folder)
    with tempfile.TemporaryDirectory(dir=folder) as plain_folder:
        plain = _build_plain(weight_file, properties, Path(plain_folder))
        path = Path(plain_folder) / GRAPH_NAME
        if properties.weight_type is WeightType.INT8:
            weight_bytes = convert_to_int8(
                path, folder, weight_file, properties, unsigned=saturates()
            )
        else:
            weight_bytes = convert_to_float16(path, folder)
    return replace(plain, weight_type=str(properties.weight_type), weight_bytes=weight_bytes)


def _build_plain(weight_file: WeightFile, properties: ModelProperties, folder: Path) -> BuiltGraph:
    if weight_file.format is Format.ONNX:
        return _adapt_export(weight_file, properties, folder)
    inputs = INPUTS.get(properties.model_type)
    config = JsonObject(path=weight_file.folder / "config.json", values=properties.config)
    if inputs is None:
        known = ", ".join(INPUTS)
        raise config.wrong("model_type", f"one of {known} where there is no onnx/model.onnx")
    if config.values.get(TASKS_KEY):
        raise ModelError(
            f"{config.path}: {TASKS_KEY} names adapters, which need an ONNX export with an input "
            "task_id: put it at onnx/model.onnx"
        )
    model = _new_model(properties, inputs)
    with (
        open_merged(weight_file, properties) as tensors,
        GraphWriter(folder, model.graph, opset=_OPSET) as writer,
    ):
        late = properties.late_interaction
        has_unattended = bool(late and late.expansion and not late.expansion.attended)
        hidden = build_backbone(writer, tensors, config, has_unattended=has_unattended)
        if properties.kind in (Kind.CROSS_ENCODER, Kind.CLASSIFIER):
            logits = _append_classifier(writer, tensors, config, properties, hidden)
            outputs: tuple[str, ...] = (writer.output(logits, LOGITS),)
        elif properties.splade is not None:
            logits = build_mlm_head(
                writer, tensors, config, hidden, vocabulary_size=properties.sparse_dimensions
            )
            outputs = (
                append_vocabulary_weights(writer, properties.splade, logits, "attention_mask"),
            )
        elif properties.late_interaction is not None:
            outputs = (
                append_projected_tokens(
                    writer,
                    properties.dense_layers,
                    hidden,
                    unit=properties.late_interaction.unit,
                ),
            )
        else:
            outputs = _append_head(writer, properties, hidden)
    _save(model, folder, outputs, properties)
    return BuiltGraph(
        (*inputs, *_prompt_inputs(properties)), outputs, "float32", writer.weight_bytes
    )


def _build_table(
    weight_file: WeightFile, properties: ModelProperties, table: TokenTable, folder: Path
) -> BuiltGraph:
    """Write the graph of a static model: rows of its table in place of an encoder."""
    inputs = ("input_ids", "attention_mask")
    model = _new_model(properties, inputs)
    with (
        open_tensors(weight_file) as tensors,
        GraphWriter(folder, model.graph, opset=_OPSET) as writer,
    ):
        rows, weight_type = append_rows(writer, tensors, table, properties.weight_type)
        mask = append_mask(writer, properties, table)
        outputs = _append_head(writer, properties, rows, attention_mask=mask)
    _save(model, folder, outputs, properties)
    return BuiltGraph(inputs, outputs, weight_type, writer.weight_bytes)


def _build_look_up(
    weight_file: WeightFile, properties: ModelProperties, table: WeightTable, folder: Path
) -> BuiltGraph:
    """Write the graph of a table of weights."""
    inputs = ("input_ids",)
    model = _new_model(properties, inputs)
    weights = read_table_weights(weight_file, properties, table)
    with GraphWriter(folder, model.graph, opset=_OPSET) as writer:
        outputs = (append_look_up(writer, weights),)
    _save(model, folder, outputs, properties)
    return BuiltGraph(inputs, outputs, "float32", writer.weight_bytes)


def _new_model(properties: ModelProperties, inputs: tuple[str, ...]) -> onnx.ModelProto:
    graph = onnx.GraphProto(name=properties.model_type)
    _describe_inputs(graph, inputs)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )


def _adapt_export(weight_file: WeightFile, properties: ModelProperties, folder: Path) -> BuiltGraph:
    export = read_export(weight_file, may_be_quantized=bool(properties.file))
    model = export.model
    pooled = False
    with GraphWriter(folder, model.graph, opset=export.opset) as writer:
        # First: what it removes need not be written.
        cut = cut_vocabulary_head(model, weight_file, properties)
        move_weights(writer, weight_file, model)
        inputs = bind_inputs(writer, weight_file, properties)
        m3 = None if properties.output else find_m3_outputs(model.graph)
        if properties.kind in (Kind.CROSS_ENCODER, Kind.CLASSIFIER):
            outputs: tuple[str, ...] = (_append_score(writer, weight_file, properties, cut),)
            exported = m3 = None
        elif properties.splade is not None:
            logits = find_token_logits(writer, weight_file, properties)
            outputs = (
                append_vocabulary_weights(writer, properties.splade, logits, "attention_mask"),
            )
            exported = m3 = None
        elif properties.late_interaction is not None:
            hidden, projected = find_token_vectors(writer, weight_file, properties)
            outputs = (
                append_projected_tokens(
                    writer,
                    () if projected else properties.dense_layers,
                    hidden,
                    unit=properties.late_interaction.unit,
                ),
            )
            exported = m3 = None
        elif m3 is not None:
            outputs = _append_head(writer, properties, find_m3_hidden(writer, weight_file, m3))
            outputs += adopt_m3_outputs(writer, properties, m3)
            exported = None
        elif (vector := find_pooled(writer, weight_file, properties)) is not None:
            check_no_heads(weight_file, properties)
            outputs = append_outputs(writer, vector, normalize=properties.normalize)
            exported, pooled = None, True
        else:
            hidden, exported = find_hidden(writer, weight_file, properties)
            outputs = _append_head(writer, properties, hidden)
    if pooled:
        _save(model, folder, outputs, properties)
        outputs = check_pooled(folder / GRAPH_NAME, weight_file, properties, outputs)
    if exported is not None and not properties.pooling_is_set:
        _save(model, folder, (*outputs, exported), properties)
        check_sentence_embedding(folder / GRAPH_NAME, weight_file, properties, outputs, exported)
    if properties.splade is not None:
        _save(model, folder, outputs, properties)
        check_vocabulary(folder / GRAPH_NAME, weight_file, properties)
    if m3 is not None:
        _save(model, folder, outputs, properties, exported=m3.described)
        check_m3_outputs(folder / GRAPH_NAME, weight_file, properties, m3)
    _save(model, folder, outputs, properties)
    # A graph is a program: if it never ends or takes all memory, that must happen here.
    check_batching(
        folder / GRAPH_NAME,
        weight_file,
        properties,
        outputs,
        tolerance=_QUANTIZED_TOLERANCE
        if export.quantized
        else _TOLERANCES.get(export.weight_type, _HALF_TOLERANCE),
    )
    return BuiltGraph(
        (*inputs, *_prompt_inputs(properties)), outputs, export.weight_type, writer.weight_bytes
    )


def _append_score(
    writer: GraphWriter,
    weight_file: WeightFile,
    properties: ModelProperties,
    cut: tuple[str, TokenRows] | None,
) -> str:
    """Name the logit of a cross-encoder, or of a causal model without its head, as an output."""
    if cut is None:
        return find_logits(writer, weight_file, properties)
    hidden, head = cut
    logits = append_logit_score(writer, clear_names(writer, hidden), head)
    return writer.output(logits, LOGITS)


def _append_classifier(
    writer: GraphWriter,
    tensors: Tensors,
    config: JsonObject,
    properties: ModelProperties,
    hidden: str,
) -> str:
    score = properties.logit_score
    if score is not None:
        head = read_token_rows(tensors, config, score.token_ids)
        return append_logit_score(writer, hidden, head)
    label_count = len(properties.labels)
    model_type = config.text("model_type", default="")
    rotary = ROTARY_FAMILIES.get(model_type)
    if rotary is not None:
        return build_rotary_classifier(
            writer, tensors, config, rotary, hidden, label_count=label_count
        )
    family = FAMILIES.get(model_type)
    if family is None:
        return append_last_token_logits(writer, tensors, config, hidden, label_count=label_count)
    return encoder.build_classifier(
        writer, tensors, config, family, hidden, label_count=label_count
    )


def _append_head(
    writer: GraphWriter,
    properties: ModelProperties,
    hidden: str,
    *,
    attention_mask: str = "attention_mask",
) -> tuple[str, ...]:
    for name in _prompt_inputs(properties):
        value = helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"])
        writer.graph.input.append(value)
    outputs = append_embedding_head(
        writer,
        hidden=hidden,
        attention_mask=attention_mask,
        hidden_size=properties.token_dimensions,
        poolings=properties.poolings,
        layers=properties.dense_layers,
        normalize=properties.normalize,
        prompt_tokens="".join(_prompt_inputs(properties)),
    )
    if properties.sparse_head is not None:
        outputs += (append_token_weights(writer, properties.sparse_head, hidden),)
    if properties.multi_vector_head is not None:
        outputs += (append_token_embeddings(writer, properties.multi_vector_head, hidden),)
    if properties.table is None:
        # Last: whatever uses the vectors follows the change of their name.
        outputs += (writer.publish(hidden, TOKEN_VECTORS),)
    return outputs


def _prompt_inputs(properties: ModelProperties) -> tuple[str, ...]:
    """Return the name of the input that says how many tokens a prompt has, if it matters."""
    return () if properties.include_prompt or not properties.poolings else (PROMPT_TOKENS,)


def _describe_inputs(graph: onnx.GraphProto, names: tuple[str, ...]) -> None:
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in names
    )


def _save(
    model: onnx.ModelProto,
    folder: Path,
    outputs: tuple[str, ...],
    properties: ModelProperties,
    *,
    exported: Sequence[onnx.ValueInfoProto] = (),
) -> None:
    sizes = output_sizes(properties)
    axes = {name: ["batch", *(size or "tokens" for size in of)] for name, of in sizes.items()}
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes.get(name)) for name in outputs
    )
    model.graph.output.extend(exported)
    import_domains(model)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString())
