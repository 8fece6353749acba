"""Reduces the inputs of an exported graph to token ids, mask and token types.

Exports of decoders also need positions and a cache of keys and values, and some models a task.
The graph then computes these inputs for one pass over whole texts, so that every backend can run
it on token ids and mask alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.limits import OFFSET_POSITIONS
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile

_MASK = "attention_mask"
_SERVED = ("input_ids", _MASK, "token_type_ids")
_TASK = "task_id"
_REQUIRED = frozenset(_SERVED[:2])
_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})
_MASK_KINDS = _INTEGERS | {TensorProto.BOOL, TensorProto.FLOAT, TensorProto.FLOAT16}
_PAST = re.compile(r"past_key_values\.\d+\.(decoder\.)?(key|value)")
_PAST_RANK = 4
_AXES = 2


def bind_inputs(
    writer: GraphWriter, weight_file: WeightFile, properties: ModelProperties
) -> tuple[str, ...]:
    """Leave a graph with no inputs but `input_ids`, `attention_mask` and `token_type_ids`.

    A graph that computes one of several tasks keeps `task_id`, int64 [batch].

    Returns:
        The names of the inputs that remain; the others are int64 [batch, tokens].

    Raises:
        ModelError: A required input is missing, or another one is not supported.
    """
    graph = writer.graph
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in initialized}
    missing = sorted(_REQUIRED - inputs.keys())
    if missing:
        raise ModelError(f"{weight_file.path}: the graph has no input {missing[0]!r}")
    served = tuple(name for name in _SERVED if name in inputs)
    kept = [value for value in graph.input if value.name in initialized]
    tasks = (_TASK,) if _TASK in inputs and properties.tasks else ()
    if properties.tasks and not tasks:
        raise ModelError(
            f"{weight_file.path}: config.json names tasks in lora_adaptations, but the graph has "
            f"no input {_TASK!r}: export it with one, or set task_id for this model in the "
            "configuration to the task that the graph computes"
        )
    renamed_task = writer.vacate(_TASK) if tasks else ""
    casts = {name: _vacate(writer, _Input(weight_file, inputs[name])) for name in served}
    with writer.ahead():
        for name, renamed in casts.items():
            if renamed != name:
                kind = inputs[name].type.tensor_type.elem_type
                writer.output(writer.op("Cast", name, to=kind), renamed)
        for name, value in inputs.items():
            if name in tasks:
                _pass_task(writer, _Input(weight_file, value), renamed_task)
            elif name not in served:
                _choose_fill(weight_file, name)(writer, _Input(weight_file, value), properties)
    del graph.input[:]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in served
    )
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in tasks
    )
    graph.input.extend(kept)
    return (*served, *tasks)


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of an export."""

    weight_file: WeightFile
    value: onnx.ValueInfoProto

    @property
    def name(self) -> str:
        return self.value.name

    @property
    def kind(self) -> int:
        """The ONNX number of the type of its values."""
        return self.value.type.tensor_type.elem_type

    @property
    def sizes(self) -> list[int | None] | None:
        """The length of each axis, None if free; None if the export describes no shape."""
        described = self.value.type.tensor_type
        if not described.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in described.shape.dim]

    def wrong(self, wanted: str) -> ModelError:
        return ModelError(f"{self.weight_file.path}: the graph's input {self.name!r} must {wanted}")


def _vacate(writer: GraphWriter, given: _Input) -> str:
    """Check an input that is served, and return the name of the value that the export reads."""
    if given.kind not in (_MASK_KINDS if given.name == _MASK else _INTEGERS):
        raise given.wrong("be int64 or int32")
    if given.sizes is not None and given.sizes != [None] * _AXES:
        sizes = ["free" if size is None else size for size in given.sizes]
        raise given.wrong(
            f"have a free batch and length, not {sizes}: export it with dynamic axes, as the "
            "exporter of optimum-onnx does"
        )
    return given.name if given.kind == TensorProto.INT64 else writer.vacate(given.name)


_Fill = Callable[[GraphWriter, _Input, ModelProperties], None]


def _choose_fill(weight_file: WeightFile, name: str) -> _Fill:
    if _PAST.fullmatch(name):
        return _fill_past
    if name not in _FILLS:
        raise ModelError(f"{weight_file.path}: the graph's input {name!r} is not supported")
    return _FILLS[name]


def _fill_positions(writer: GraphWriter, given: _Input, properties: ModelProperties) -> None:
    """Number the real tokens, wherever padding is: from 0, or from the padding id + 1."""
    if given.kind not in _INTEGERS or len(given.sizes or [None] * _AXES) != _AXES:
        raise given.wrong("be int64 or int32 of shape [batch, tokens]")
    axis = writer.constant(np.array(1, np.int64), "axis")
    if properties.model_type in OFFSET_POSITIONS:
        # Such models compare ids: a padding token that a text spells out has no position.
        padding = writer.constant(np.array(properties.pad_token_id, np.int64), "padding")
        other = writer.op("Not", writer.op("Equal", "input_ids", padding))
        real = writer.op("Cast", other, to=TensorProto.INT64)
        count = writer.op("Mul", writer.op("CumSum", real, axis), real)
        positions = writer.op("Add", count, padding)
    else:
        # In float32: older opsets have no Max of integers. The tokens that fill up a query count,
        # although the mask leaves them out.
        late = properties.late_interaction is not None
        counted = writer.op("Equal", "input_ids", "input_ids") if late else _MASK
        mask = writer.op("Cast", counted, to=TensorProto.FLOAT)
        count = writer.op("CumSum", mask, axis)
        before = writer.op("Sub", count, writer.scalar(1.0))
        positions = writer.op("Max", before, writer.scalar(0.0))
    writer.output(writer.op("Cast", positions, to=given.kind), given.name)


def _fill_past(writer: GraphWriter, given: _Input, properties: ModelProperties) -> None:
    """Make keys or values of no tokens, [batch, heads, 0, head size]."""
    sizes = given.sizes
    if sizes is None or len(sizes) != _PAST_RANK:
        raise given.wrong("be of shape [batch, heads, past tokens, head size]")
    if sizes[0] is not None or sizes[2] is not None:
        raise given.wrong("have a free batch and length: export it with dynamic axes")
    config = JsonObject(properties.transformer_folder / "config.json", properties.config)
    heads = sizes[1] if sizes[1] is not None else _count_heads(config)
    size = sizes[3] if sizes[3] is not None else _head_size(config)
    shape = writer.op("Shape", "input_ids")
    batch = writer.op("Gather", shape, writer.constant(np.array([0], np.int64), "first"))
    rest = writer.constant(np.array([heads, 0, size], np.int64), "past_shape")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given.kind)
    zero = onnx.numpy_helper.from_array(np.zeros(1, dtype=dtype))
    past = writer.op(
        "ConstantOfShape", writer.op("Concat", batch, rest, axis=0), value=zero, name="past"
    )
    writer.output(past, given.name)


def _count_heads(config: JsonObject) -> int:
    return config.count("num_key_value_heads") or config.size("num_attention_heads")


def _head_size(config: JsonObject) -> int:
    # head_dim comes first: it need not be the quotient.
    return config.count("head_dim") or config.size("hidden_size") // config.size(
        "num_attention_heads"
    )


def _fill_task(writer: GraphWriter, given: _Input, properties: ModelProperties) -> None:
    """Set the task that the configuration names, for every text."""
    if properties.task_id is None:
        raise ModelError(
            f"{given.weight_file.path}: the graph's input {given.name!r} chooses a task: set "
            "task_id for this model in the configuration, as config.json has no lora_adaptations"
        )
    _check_task(given)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given.kind)
    task = writer.constant(np.array(properties.task_id, dtype), "task")
    if given.sizes == [None]:
        shape = writer.op("Shape", "input_ids")
        first = writer.constant(np.array([0], np.int64), "first")
        task = writer.op("Expand", task, writer.op("Gather", shape, first))
    elif given.sizes:
        task = writer.reshape(task, [1])
    writer.output(task, given.name)


def _pass_task(writer: GraphWriter, given: _Input, renamed: str) -> None:
    """Pass on the task of the batch, all of whose texts have the same."""
    _check_task(given)
    task = writer.op("Cast", given.name, to=given.kind)
    if given.sizes != [None]:
        first = writer.constant(np.array(0, np.int64), "first")
        task = writer.op("Gather", task, first, axis=0)
    if given.sizes and given.sizes != [None]:
        task = writer.reshape(task, [1])
    writer.output(task, renamed)


def _check_task(given: _Input) -> None:
    if given.kind not in _INTEGERS or len(given.sizes or []) > 1:
        raise given.wrong("be one int64 or int32 per text")


def _fill_branch(writer: GraphWriter, given: _Input, properties: ModelProperties) -> None:
    """Choose the branch without keys and values of earlier tokens."""
    del properties
    writer.output(writer.constant(np.zeros(1, dtype=np.bool_), "branch"), given.name)


def _fill_kept_logits(writer: GraphWriter, given: _Input, properties: ModelProperties) -> None:
    """Keep the logits of all tokens: 0 stands for all."""
    del properties
    if given.kind not in _INTEGERS or given.sizes not in ([], [1], None):
        raise given.wrong("be one int64 or int32")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given.kind)
    shape = () if given.sizes == [] else (1,)
    writer.output(writer.constant(np.zeros(shape, dtype), "kept"), given.name)


_FILLS: Mapping[str, _Fill] = {
    "num_logits_to_keep": _fill_kept_logits,
    "logits_to_keep": _fill_kept_logits,
    "position_ids": _fill_positions,
    _TASK: _fill_task,
    "use_cache_branch": _fill_branch,
}
