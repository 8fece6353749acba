"""Whether the results of an exported graph depend on the padding of the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from tests.models.runner import Runner, copy_fixture

HEADS, HEAD_SIZE, HIDDEN, VOCABULARY = 4, 8, 40, 1103


def _write(folder: Path, nodes: list[onnx.NodeProto], *, opset: int = 17) -> None:
    """Replace the export of qwen3-last by a graph of these nodes, and fixed random weights."""
    random = np.random.default_rng(7)
    inner = HEADS * HEAD_SIZE
    tensors = {
        "table": random.normal(size=(VOCABULARY, HIDDEN)),
        "q": random.normal(size=(HIDDEN, inner)),
        "k": random.normal(size=(HIDDEN, inner)),
        "v": random.normal(size=(HIDDEN, inner)),
        "o": random.normal(size=(inner, HIDDEN)),
    }
    weights = [
        numpy_helper.from_array(values.astype(np.float32), name) for name, values in tensors.items()
    ]
    constants = {"one": np.array([1]), "axis": np.array([1]), "empty": np.zeros((0,))}
    weights += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", HIDDEN]
    )
    graph = helper.make_graph(nodes, "export", inputs, [output], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (folder / "onnx/model.onnx").write_bytes(model.SerializeToString())


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def _write_group_query(folder: Path) -> None:
    """Write attention by GroupQueryAttention, which counts the tokens of a text from the left."""
    _write(
        folder,
        [
            _node("Gather", ["table", "input_ids"], "x"),
            *(_node("MatMul", ["x", name], f"x{name}") for name in "qkv"),
            _node("ReduceSum", ["attention_mask", "axis"], "count", keepdims=0),
            _node("Sub", ["count", "one"], "last"),
            _node("Cast", ["last"], "seqlens_k", to=TensorProto.INT32),
            _node("Shape", ["input_ids"], "shape"),
            _node("Gather", ["shape", "one"], "width"),
            _node("Squeeze", ["width"], "scalar"),
            _node("Cast", ["scalar"], "total", to=TensorProto.INT32),
            helper.make_node(
                "GroupQueryAttention",
                ["xq", "xk", "xv", "", "", "seqlens_k", "total"],
                ["attended", "present_k", "present_v"],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=HEADS,
            ),
            _node("MatMul", ["attended", "o"], "last_hidden_state"),
        ],
    )


def _write_unmasked(folder: Path) -> None:
    """Write a mean over all tokens of the batch, padding included."""
    _write(
        folder,
        [
            _node("Gather", ["table", "input_ids"], "x"),
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            _node("Add", ["x", "mean"], "last_hidden_state"),
        ],
    )


def _folder(tmp_path: Path) -> Path:
    folder = copy_fixture("qwen3-last", tmp_path)
    for path in (folder / "onnx").iterdir():
        path.unlink()
    return folder


def test_group_query_attention_is_padded_on_the_right(tmp_path: Path) -> None:
    """A text has one vector, alone and padded, although its tokenizer pads on the left."""
    folder = _folder(tmp_path)
    _write_group_query(folder)
    runner = Runner.load(folder, tmp_path / "cache")
    sequences = runner.tokenize(["two words", "a text of a few more words than the other one has"])
    together = runner.run(sequences, "sentence_embedding")
    alone = [runner.run([one], "sentence_embedding")[0] for one in sequences]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_padding_that_changes_results_is_refused(tmp_path: Path) -> None:
    """If it is told to pad such a graph on the left, the error names the setting."""
    folder = _folder(tmp_path)
    _write_group_query(folder)
    files = resolve(str(folder))
    described = properties.read(files, ModelOverrides(padding_side="left"))
    with pytest.raises(ModelError, match=r"on the left .*: set padding_side to right"):
        prepare(files, described, cache_dir=tmp_path / "cache")


def test_a_graph_without_a_mask_is_refused(tmp_path: Path) -> None:
    """A graph that reads padding as text is refused for either side."""
    folder = _folder(tmp_path)
    _write_unmasked(folder)
    files = resolve(str(folder))
    with pytest.raises(ModelError, match=r"depends on the padding .*: export it again"):
        prepare(files, properties.read(files), cache_dir=tmp_path / "cache")
