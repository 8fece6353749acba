from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.exports.inputs import bind_inputs
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import Format, WeightFile
from tests.models.runner import FIXTURES, Runner, copy_fixture, expected

LEFT = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
RIGHT = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
PADDING = 1
Sizes = Sequence[str | int]
Value = tuple[str, int, Sizes | None]


@pytest.fixture
def properties() -> ModelProperties:
    """The properties of a model with 4 heads, 40 values per token, and 2 key-value heads of 20."""
    return read(resolve(str(FIXTURES / "qwen3-last")))


def _bind(
    folder: Path, properties: ModelProperties, value: Value, mask: NDArray[Any] = RIGHT
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Bind a graph with one more input; return its inputs, and the value fed to that input."""
    name, kind, sizes = value
    graph = onnx.GraphProto(name="export")
    for served in ("input_ids", "attention_mask"):
        axes = ["batch", "tokens"]
        graph.input.append(helper.make_tensor_value_info(served, TensorProto.INT64, axes))
    given = helper.make_tensor_value_info(name, kind, sizes)
    if name in {"input_ids", "attention_mask"}:
        graph.input[int(name == "attention_mask")].CopyFrom(given)
    else:
        graph.input.append(given)
    graph.node.append(helper.make_node("Identity", [name], ["fed"]))
    weight_file = WeightFile(Format.ONNX, folder, folder, folder / "model.onnx", "")
    with GraphWriter(folder, graph, opset=13) as writer:
        inputs = bind_inputs(writer, weight_file, properties)
    graph.output.append(helper.make_tensor_value_info("fed", kind, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert [v.name for v in session.get_inputs()] == list(inputs)
    feeds = {"input_ids": mask * 4 + PADDING, "attention_mask": mask}
    if "task_id" in inputs:
        feeds["task_id"] = np.full(len(mask), 3)
    (fed,) = session.run(None, feeds)
    return inputs, fed


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize(
    ("model_type", "mask", "wanted"),
    [
        ("qwen3", LEFT, [[0, 0, 0, 1], [0, 1, 2, 3]]),
        ("qwen3", RIGHT, [[0, 1, 1, 1], [0, 1, 2, 3]]),
        ("roberta", LEFT, [[1, 1, 2, 3], [2, 3, 4, 5]]),
        ("roberta", RIGHT, [[2, 3, 1, 1], [2, 3, 4, 5]]),
    ],
)
def test_positions(  # noqa: PLR0917 - a table
    tmp_path: Path,
    properties: ModelProperties,
    kind: int,
    model_type: str,
    mask: NDArray[Any],
    wanted: list[list[int]],
) -> None:
    """Positions count real tokens, wherever padding is, from the architecture's first position."""
    told = replace(properties, model_type=model_type, pad_token_id=PADDING)
    _, fed = _bind(tmp_path, told, ("position_ids", kind, ["batch", "tokens"]), mask)
    assert fed.tolist() == wanted
    assert fed.dtype == helper.tensor_dtype_to_np_dtype(kind)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("sizes", [["b", 3, "past", 7], ["b", "heads", "past", "size"]])
def test_past_keys_and_values(
    tmp_path: Path, properties: ModelProperties, kind: int, sizes: list[str | int]
) -> None:
    """The cache is empty, with the sizes of the graph or else of config.json."""
    value = ("past_key_values.1.value", kind, sizes)
    inputs, fed = _bind(tmp_path, properties, value)
    assert inputs == ("input_ids", "attention_mask")
    assert fed.shape == ((2, 3, 0, 7) if sizes[1] == 3 else (2, 2, 0, 20))
    assert fed.dtype == helper.tensor_dtype_to_np_dtype(kind)


def test_head_size_without_a_key(tmp_path: Path, properties: ModelProperties) -> None:
    """Without head_dim in config.json, the head size is the quotient."""
    config = {"hidden_size": 40, "num_attention_heads": 4}
    value = ("past_key_values.0.key", TensorProto.FLOAT, ["b", "heads", "past", "size"])
    _, fed = _bind(tmp_path, replace(properties, config=config), value)
    assert fed.shape == (2, 4, 0, 10)


@pytest.mark.parametrize("name", ["num_logits_to_keep", "logits_to_keep"])
@pytest.mark.parametrize("sizes", [[], [1]])
def test_logits_of_all_tokens(
    tmp_path: Path, properties: ModelProperties, name: str, sizes: list[str | int]
) -> None:
    """An export that can leave logits out keeps all: which token is last differs by text."""
    inputs, fed = _bind(tmp_path, properties, (name, TensorProto.INT64, sizes))
    assert inputs == ("input_ids", "attention_mask")
    assert (list(fed.shape), fed.flatten().tolist()) == (sizes, [0])


@pytest.mark.parametrize(("sizes", "shape"), [([], ()), ([1], (1,)), (["batch"], (2,))])
def test_a_task_that_is_set(
    tmp_path: Path, properties: ModelProperties, sizes: list[str | int], shape: tuple[int, ...]
) -> None:
    """The configured task is fed once or for every text."""
    told = replace(properties, task_id=4)
    _, fed = _bind(tmp_path, told, ("task_id", TensorProto.INT64, sizes))
    assert (fed.shape, set(fed.flatten().tolist())) == (shape, {4})


@pytest.mark.parametrize(("sizes", "shape"), [([], ()), ([1], (1,)), (["batch"], (2,))])
def test_a_task_of_the_batch(
    tmp_path: Path, properties: ModelProperties, sizes: list[str | int], shape: tuple[int, ...]
) -> None:
    """If prompts choose tasks, the graph gets the task of each text."""
    told = replace(properties, tasks={"query": 0, "other": 3})
    inputs, fed = _bind(tmp_path, told, ("task_id", TensorProto.INT32, sizes))
    assert inputs == ("input_ids", "attention_mask", "task_id")
    assert (fed.shape, set(fed.flatten().tolist())) == (shape, {3})


def test_tasks_need_an_input(tmp_path: Path, properties: ModelProperties) -> None:
    """A graph that cannot choose one of the tasks that config.json names is refused."""
    told = replace(properties, tasks={"query": 0, "other": 3})
    with pytest.raises(ModelError, match="no input 'task_id'"):
        _bind(tmp_path, told, ("position_ids", TensorProto.INT64, ["batch", "tokens"]))


def test_adapters_need_an_export(tmp_path: Path) -> None:
    """Weights whose adapters a task chooses are not built without their adapters."""
    folder = copy_fixture("task-by-prompt", tmp_path, leave_out=["onnx"])
    with pytest.raises(ModelError, match="lora_adaptations names adapters"):
        Runner.load(folder, tmp_path / "cache")


def test_a_branch_without_a_cache(tmp_path: Path, properties: ModelProperties) -> None:
    """A merged decoder uses the branch without a cache."""
    _, fed = _bind(tmp_path, properties, ("use_cache_branch", TensorProto.BOOL, [1]))
    assert fed.tolist() == [False]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("input_ids", TensorProto.INT32),
        ("attention_mask", TensorProto.INT32),
        ("attention_mask", TensorProto.BOOL),
        ("attention_mask", TensorProto.FLOAT),
    ],
)
def test_served_inputs_of_other_types(
    tmp_path: Path, properties: ModelProperties, name: str, kind: int
) -> None:
    """An int64 input is cast to the type of the export."""
    _, fed = _bind(tmp_path, properties, (name, kind, ["batch", "tokens"]))
    assert fed.dtype == helper.tensor_dtype_to_np_dtype(kind)
    wanted = RIGHT * 4 + PADDING if name == "input_ids" else RIGHT
    assert fed.astype(int).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("past_key_values.0.key", 1, ["b", "past", 32]), "must be of shape [batch, heads, past"),
        (("past_key_values.0.key", 1, ["b", 2, 16, 20]), "must have a free batch and length"),
        (("past_key_values.0.key", 1, None), "must be of shape [batch, heads, past"),
        (("position_ids", 1, ["b", "s"]), "must be int64 or int32 of shape [batch, tokens]"),
        (("position_ids", 7, ["s"]), "must be int64 or int32 of shape [batch, tokens]"),
        (("task_id", 7, []), "set task_id for this model in the configuration"),
        (("cache_position", 7, ["s"]), "input 'cache_position' is not supported"),
    ],
)
def test_unsupported_inputs(
    tmp_path: Path, properties: ModelProperties, value: Value, message: str
) -> None:
    """The error names the graph, the input and the requirement."""
    with pytest.raises(ModelError) as caught:
        _bind(tmp_path, properties, value)
    assert message in str(caught.value)
    assert f"{tmp_path / 'model.onnx'}" in str(caught.value)


def test_a_task_must_be_a_number_per_text(tmp_path: Path, properties: ModelProperties) -> None:
    """A task input of another shape is refused."""
    told = replace(properties, task_id=1)
    with pytest.raises(ModelError, match="must be one int64 or int32 per text"):
        _bind(tmp_path, told, ("task_id", TensorProto.INT64, ["batch", "tokens"]))


def test_keys_and_values_are_not_outputs(tmp_path: Path) -> None:
    """The graph of a decoder has the same inputs and outputs as that of an encoder."""
    runner = Runner.load(FIXTURES / "qwen3-last", tmp_path)
    model = onnx.load(runner.graph.path, load_external_data=False)
    assert [v.name for v in model.graph.input] == ["input_ids", "attention_mask"]
    assert [v.name for v in model.graph.output] == [
        "sentence_embedding",
        "pooled_embedding",
        "token_vectors",
    ]


def _keep_outputs(folder: Path, *names: str) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    kept = [value for value in model.graph.output if value.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)


def test_a_graph_that_only_pools(tmp_path: Path) -> None:
    """An export without token vectors keeps its own vector: the only output if it normalises."""
    folder = copy_fixture("gemma-dense", tmp_path)
    _keep_outputs(folder, "sentence_embedding")
    runner = Runner.load(folder, tmp_path / "cache")
    assert runner.graph.outputs == ("sentence_embedding",)
    reference = expected("gemma-dense")
    np.testing.assert_allclose(
        runner.run(runner.tokenize(reference["texts"]), "sentence_embedding"),
        reference["outputs"]["default"]["vectors"],
        rtol=0,
        atol=reference["tolerance"],
    )
