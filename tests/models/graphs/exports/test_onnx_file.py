from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

Edit = Callable[[onnx.ModelProto], None]


def _prepare(folder: Path, cache_dir: Path) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files), cache_dir=cache_dir)


def _edit_graph(folder: Path, edit: Edit) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def _add_output(model: onnx.ModelProto, name: str, source: str, *, kind: int = 1) -> None:
    model.graph.node.append(helper.make_node("Identity", [source], [name]))
    model.graph.output.append(helper.make_tensor_value_info(name, kind, ["batch", 36]))


def _add_cls(model: onnx.ModelProto, *, normalize: bool) -> None:
    """Add the pooling that the folder describes."""
    index = helper.make_tensor("first", TensorProto.INT64, [], [0])
    model.graph.initializer.append(index)
    gather = helper.make_node("Gather", ["last_hidden_state", "first"], ["cls"], axis=1)
    scaled = helper.make_node("LpNormalization", ["cls"], ["cls_scaled"], axis=-1)
    model.graph.node.extend([gather, scaled])
    _add_output(model, "sentence_embedding", "cls_scaled" if normalize else "cls")


def _add_mean(model: onnx.ModelProto) -> None:
    """Add another pooling than the folder describes."""
    mean = helper.make_node("ReduceMean", ["last_hidden_state"], ["mean"], axes=[1], keepdims=0)
    model.graph.node.append(mean)
    _add_output(model, "sentence_embedding", "mean")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {
                "model_type": "nomic_bert",
                "architectures": ["NomicBertModel"],
                "auto_map": {"AutoModel": "owner/code--modeling.NomicBertModel"},
                "n_embd": 36,
                "n_head": 6,
                "n_layer": 2,
                "n_positions": 96,
                "activation_function": "swiglu",
            }
            | dict.fromkeys(
                (
                    "hidden_size",
                    "num_attention_heads",
                    "num_hidden_layers",
                    "max_position_embeddings",
                    "hidden_act",
                    "layer_norm_eps",
                )
            ),
            id="nomic",
        ),
        pytest.param(
            {
                "architectures": ["JinaBertForMaskedLM"],
                "auto_map": {"AutoModel": "owner/code--modeling.JinaBertModel"},
                "position_embedding_type": "alibi",
            },
            id="jina",
        ),
    ],
)
def test_an_export_needs_no_known_architecture(tmp_path: Path, config: dict[str, Any]) -> None:
    """A model with custom code is served from its export, without the keys of known families."""
    folder = copy_fixture("bert-cls", tmp_path, leave_out=["model.safetensors"])
    edit_json(folder / "config.json", **config)
    runner = Runner.load(folder, tmp_path / "cache")
    reference = expected("bert-cls")
    np.testing.assert_allclose(
        runner.run(runner.tokenize(reference["texts"]), "sentence_embedding"),
        reference["outputs"]["default"]["vectors"],
        atol=1e-4,
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_a_correct_pooled_output_is_accepted(tmp_path: Path, *, normalize: bool) -> None:
    """An export may also pool by itself, with or without Normalize; the vectors are the same."""
    folder = copy_fixture("bert-cls", tmp_path)
    _edit_graph(folder, lambda model: _add_cls(model, normalize=normalize))
    runner = Runner.load(folder, tmp_path / "cache")
    reference = expected("bert-cls")
    sequences = runner.tokenize(reference["texts"])
    for entry, output in (
        ("default", "sentence_embedding"),
        ("normalize_false", "pooled_embedding"),
    ):
        np.testing.assert_allclose(
            runner.run(sequences, output), reference["outputs"][entry]["vectors"], atol=1e-4
        )


def test_a_wrong_pooled_output_is_refused(tmp_path: Path) -> None:
    """An export that pools in another way than its folder says is refused."""
    folder = copy_fixture("bert-cls", tmp_path)
    _edit_graph(folder, _add_mean)
    with pytest.raises(ModelError, match=r"'sentence_embedding' is not what modules\.json says"):
        _prepare(folder, tmp_path / "cache")


def test_half_precision_outputs_become_float32(tmp_path: Path) -> None:
    """Token vectors in half precision are pooled in float32."""

    def edit(model: onnx.ModelProto) -> None:
        (output,) = model.graph.output
        for node in model.graph.node:
            node.output[:] = ["full" if o == output.name else o for o in node.output]
            node.input[:] = ["full" if i == output.name else i for i in node.input]
        cast = helper.make_node("Cast", ["full"], [output.name], to=TensorProto.FLOAT16)
        model.graph.node.append(cast)
        output.type.tensor_type.elem_type = TensorProto.FLOAT16

    folder = copy_fixture("bert-cls", tmp_path)
    _edit_graph(folder, edit)
    runner = Runner.load(folder, tmp_path / "cache")
    vectors = runner.run(runner.tokenize(["a text"]), "sentence_embedding")
    plain = Runner.load(FIXTURES / "bert-cls", tmp_path / "cache")
    np.testing.assert_allclose(
        vectors, plain.run(plain.tokenize(["a text"]), "sentence_embedding"), atol=5e-3
    )


def _add_input(name: str, *, kind: int = TensorProto.INT64) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info(name, kind, ["batch", "tokens"]))

    return edit


def _set_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["input_ids" if i == "attention_mask" else i for i in node.input]
    kept = [value for value in model.graph.input if value.name != "attention_mask"]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _rename_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["last_hidden_state"], ["pooler_output"]))
    model.graph.output[0].name = "pooler_output"


def _widen_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 64


def _quantise(model: onnx.ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("DynamicQuantizeLinear", ["last_hidden_state"], ["q", "scale", "zero"])
    )


def _set_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_add_input("pixel_values"), "input 'pixel_values' is not supported"),
        (_add_input("past_key_values.0.key"), "input 'past_key_values.0.key' must be of shape"),
        (_add_input("position_ids", kind=TensorProto.FLOAT), "'position_ids' must be int64 or"),
        (_add_input("task_id"), "set task_id for this model in the configuration"),
        (_set_input_type, "input 'input_ids' must be int64 or int32"),
        (_fix_batch, "input 'input_ids' must have a free batch and length"),
        (_rename_input, "the graph has no input 'attention_mask'"),
        (_rename_output, "one must be last_hidden_state or token_embeddings"),
        (_widen_output, "has 64 values per token, not the 36"),
        (_quantise, "is quantised (DynamicQuantizeLinear)"),
        (_set_opset, "opset 9 is older than 11"),
    ],
)
def test_graphs_that_are_not_supported(tmp_path: Path, edit: Edit, message: str) -> None:
    """One line names the graph and its problem."""
    folder = copy_fixture("bert-cls", tmp_path)
    _edit_graph(folder, edit)
    with pytest.raises(ModelError) as caught:
        _prepare(folder, tmp_path / "cache")
    assert message in str(caught.value)
    assert str(folder / "onnx" / "model.onnx") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no graph", b""])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is not an ONNX graph is named."""
    folder = copy_fixture("bert-cls", tmp_path)
    (folder / "onnx" / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX file"):
        _prepare(folder, tmp_path / "cache")


@pytest.mark.parametrize("labels", [2, None])
def test_logits_of_another_shape_are_refused(tmp_path: Path, labels: int | None) -> None:
    """A cross-encoder's graph must return one score per pair."""

    def edit(model: onnx.ModelProto) -> None:
        dims = model.graph.output[0].type.tensor_type.shape.dim
        if labels is None:
            del dims[1]
        else:
            dims[1].dim_value = labels

    folder = copy_fixture("cross-bert", tmp_path)
    _edit_graph(folder, edit)
    with pytest.raises(ModelError, match=r"'logits' must be of shape \[batch, 1\]"):
        _prepare(folder, tmp_path / "cache")


def test_a_cross_encoder_without_logits_is_refused(tmp_path: Path) -> None:
    """The error names the outputs of the graph."""

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Identity", ["logits"], ["scores"]))
        model.graph.output[0].name = "scores"

    folder = copy_fixture("cross-bert", tmp_path)
    _edit_graph(folder, edit)
    with pytest.raises(ModelError, match="outputs are scores; one must be logits"):
        _prepare(folder, tmp_path / "cache")


def _externalise(folder: Path, location: str = "model.onnx_data") -> Path:
    """Move an export's weights to a file beside it, and write a location into the graph."""
    path = folder / "onnx" / "model.onnx"
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=64,
    )
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)
    return folder / "onnx" / "model.onnx_data"


def test_external_weights(tmp_path: Path) -> None:
    """Weights in an external file are used and cached, and are part of the content hash."""
    folder = copy_fixture("bert-cls", tmp_path)
    data = _externalise(folder)
    cache = tmp_path / "cache"
    runner = Runner.load(folder, cache)
    reference = expected("bert-cls")
    vectors = runner.run(runner.tokenize(reference["texts"]), "sentence_embedding")
    wanted = reference["outputs"]["default"]["vectors"]
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-4)
    assert _prepare(folder, cache) == runner.graph
    changed = bytearray(data.read_bytes())
    changed[5] ^= 1
    data.write_bytes(changed)
    other = _prepare(folder, cache)
    assert other.path != runner.graph.path
    assert other.content_hash != runner.graph.content_hash


@pytest.mark.parametrize(
    "location", ["../../secret", "/etc/passwd", "", "sub/../../../secret", "leaving"]
)
def test_external_weights_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    """Neither a path nor a link to an external file may leave the model's folder."""
    folder = copy_fixture("bert-cls", tmp_path)
    _externalise(folder, location)
    (tmp_path / "secret").write_bytes(b"\0" * 10**6)
    (folder / "onnx" / "leaving").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"leads out of the model folder|must name a file"):
        _prepare(folder, tmp_path / "cache")


def test_external_weights_may_be_linked_inside_the_folder(tmp_path: Path) -> None:
    """A link to another file in the model's folder is accepted."""
    folder = copy_fixture("bert-cls", tmp_path)
    data = _externalise(folder)
    data.rename(folder / "weights")
    data.symlink_to(folder / "weights")
    assert _prepare(folder, tmp_path / "cache").path.exists()


def test_external_weights_that_are_missing_or_short(tmp_path: Path) -> None:
    """An external file that is missing, too short or a Git LFS pointer is named."""
    folder = copy_fixture("bert-cls", tmp_path)
    data = _externalise(folder)
    whole = data.read_bytes()
    data.write_bytes(whole[:1000])
    with pytest.raises(ModelError, match=r"'model\.onnx_data' is too short for"):
        _prepare(folder, tmp_path / "cache")
    data.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer"):
        _prepare(folder, tmp_path / "cache")
    data.unlink()
    with pytest.raises(ModelError, match=r"'model\.onnx_data' is missing"):
        _prepare(folder, tmp_path / "cache")


def test_an_export_serves_any_architecture(tmp_path: Path) -> None:
    """An architecture that cannot be built from safetensors is served from its export."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_json(folder / "config.json", model_type="some_new_bert")
    assert _prepare(folder, tmp_path / "cache").outputs[0] == "sentence_embedding"
