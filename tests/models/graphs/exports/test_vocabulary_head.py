"""The head of a causal model is cut: only the logits that make a score are computed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.logit_score import LogitScore
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.exports.names import clear_names
from embedgrpc.models.graphs.exports.vocabulary_head import cut_vocabulary_head
from embedgrpc.models.graphs.heads.logit_score import append_logit_score
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import Format, WeightFile
from tests.models.runner import FIXTURES, Runner, copy_fixture

HIDDEN, VOCABULARY = 5, 11
TRUE, FALSE = 7, 3
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
Node = tuple[str, Sequence[str], str]


@pytest.fixture
def properties() -> ModelProperties:
    """The properties of a causal reranker, with other tokens."""
    found = read(resolve(str(FIXTURES / "cross-qwen3-causal")))
    return replace(found, logit_score=LogitScore(TRUE, FALSE))


def _values(*shape: int, dtype: type = np.float32) -> NDArray[np.generic]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


TABLE = _values(VOCABULARY, HIDDEN)
TENSORS: dict[str, NDArray[np.generic]] = {
    "table": TABLE,
    "columns": np.ascontiguousarray(TABLE.T),
    "half_columns": TABLE.T.astype(np.float16),
    "bias": _values(VOCABULARY),
    "cap": np.array(3, np.float32),
    "caps": np.array([0.5], np.float32),
    "quantized": TABLE.T.astype(np.int8),
    "narrow": np.ascontiguousarray(TABLE[:4].T),
}


def _export(nodes: Sequence[Node], *, sizes: Sequence[str | int], half: bool) -> onnx.ModelProto:
    """Make a graph from ids to hidden vectors, and from these by some nodes to logits."""
    graph = onnx.GraphProto(name="export")
    for name in ("input_ids", "attention_mask"):
        graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        )
    graph.node.append(helper.make_node("Gather", ["table", "input_ids"], ["embedded"]))
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph.node.append(helper.make_node("Cast", ["embedded"], ["hidden"], to=kind))
    for kind_name, inputs, output in nodes:
        options: dict[str, Any] = {"perm": [1, 0]} if kind_name == "Transpose" else {}
        options |= {"to": TensorProto.FLOAT} if kind_name == "Cast" else {}
        graph.node.append(helper.make_node(kind_name, list(inputs), [output], **options))
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in TENSORS.items() if name in used
    )
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto) -> NDArray[np.float32]:
    ids = np.arange(MASK.size).reshape(MASK.shape) % VOCABULARY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": MASK})
    return np.asarray(found)


def _cut(model: onnx.ModelProto, folder: Path, properties: ModelProperties) -> onnx.ModelProto:
    weight_file = WeightFile(Format.ONNX, folder, folder, folder / "model.onnx", "")
    with GraphWriter(folder, model.graph, opset=17) as writer:
        cut = cut_vocabulary_head(model, weight_file, properties)
        assert cut is not None
        score = append_logit_score(writer, clear_names(writer, cut[0]), cut[1])
        writer.output(score, "logits")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    return model


FREE = ("batch", "tokens", VOCABULARY)
HEADS: dict[str, Sequence[Node]] = {
    "columns": [("MatMul", ("hidden", "columns"), "logits")],
    "tied": [
        ("Transpose", ("table",), "turned"),
        ("MatMul", ("hidden", "turned"), "logits"),
    ],
    "half": [
        ("MatMul", ("hidden", "half_columns"), "halves"),
        ("Cast", ("halves",), "logits"),
    ],
    "bias": [
        ("MatMul", ("hidden", "columns"), "product"),
        ("Add", ("bias", "product"), "logits"),
    ],
    "soft cap": [
        ("MatMul", ("hidden", "columns"), "product"),
        ("Div", ("product", "cap"), "small"),
        ("Tanh", ("small",), "bent"),
        ("Mul", ("cap", "bent"), "large"),
        ("Sub", ("large", "caps"), "logits"),
    ],
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("false_token", [FALSE, None])
def test_the_score_is_that_of_the_whole_head(
    tmp_path: Path, properties: ModelProperties, name: str, false_token: int | None
) -> None:
    """The last real token's logits make the score, and no value is as wide as the vocabulary."""
    half = name == "half"
    whole = _run(_export(HEADS[name], sizes=FREE, half=half))
    last = whole[np.arange(len(MASK)), MASK.sum(1) - 1]
    wanted = last[:, TRUE] - (0 if false_token is None else last[:, false_token])
    properties = replace(properties, logit_score=LogitScore(TRUE, false_token))
    model = _cut(_export(HEADS[name], sizes=FREE, half=half), tmp_path, properties)
    np.testing.assert_allclose(_run(model)[:, 0], wanted, rtol=0, atol=5e-3 if half else 1e-6)
    left = {tensor.name for tensor in model.graph.initializer}
    assert not left & {"columns", "half_columns", "bias"}


@pytest.mark.parametrize(
    ("nodes", "sizes", "message"),
    [
        (HEADS["tied"], ("batch", 1, VOCABULARY), r"of shape \[batch, tokens, vocabulary\]"),
        (HEADS["tied"], ("batch", VOCABULARY), r"of shape \[batch, tokens, vocabulary\]"),
        (
            [
                ("Cast", ("quantized",), "floats"),
                ("MatMul", ("hidden", "floats"), "logits"),
            ],
            FREE,
            "product of token vectors",
        ),
        ([("MatMul", ("hidden", "narrow"), "logits")], FREE, "product of token vectors"),
        (
            [
                ("MatMul", ("hidden", "columns"), "product"),
                ("Softmax", ("product",), "logits"),
            ],
            FREE,
            "but the graph has Softmax there",
        ),
        (
            [
                ("MatMul", ("hidden", "columns"), "product"),
                ("Div", ("cap", "product"), "logits"),
            ],
            FREE,
            "but the graph has Div there",
        ),
        ([("Identity", ("hidden",), "logits")], FREE, "but the graph has Gather there"),
    ],
)
def test_other_heads_are_refused(
    tmp_path: Path,
    properties: ModelProperties,
    nodes: Sequence[Node],
    sizes: Sequence[str | int],
    message: str,
) -> None:
    """The error names the file, the fault and what to do."""
    with pytest.raises(ModelError, match=rf"model\.onnx: .*{message}"):
        _cut(_export(nodes, sizes=sizes, half=False), tmp_path, properties)


@pytest.mark.parametrize("name", ["cross-qwen3-causal", "cross-qwen2-causal"])
def test_the_weights_of_the_head_are_not_kept(tmp_path: Path, name: str) -> None:
    """A head of its own is dropped; a table that both ends share is kept once."""
    runner = Runner.load(FIXTURES / name, tmp_path)
    model = onnx.load(runner.graph.path, load_external_data=False)
    tables = [tensor for tensor in model.graph.initializer if 570 in tensor.dims]
    assert len(tables) == 1


def test_external_weights_of_a_head_are_read(tmp_path: Path) -> None:
    """The rows come from the file beside the graph."""
    folder = copy_fixture("cross-qwen2-causal", tmp_path)
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    pairs = [("what is it", "it is short"), ("a", "b")]
    one, other = (
        Runner.load(source, tmp_path / "cache") for source in (FIXTURES / folder.name, folder)
    )
    np.testing.assert_array_equal(
        one.run(one.tokenize_pairs(pairs), "logits"),
        other.run(other.tokenize_pairs(pairs), "logits"),
    )
