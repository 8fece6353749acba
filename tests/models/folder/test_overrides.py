import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Activation, Pooling, Similarity, WeightType
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected


def _read(folder: Path, **overrides: Any) -> ModelProperties:
    return read(resolve(str(folder)), ModelOverrides(**overrides))


def _load(folder: Path, cache_dir: Path, **overrides: Any) -> Runner:
    files = resolve(str(folder))
    properties = read(files, ModelOverrides(**overrides))
    graph = prepare(files, properties, cache_dir=cache_dir)
    backend = OnnxBackend(graph.path, device="cpu")
    return Runner(properties, Tokenizer.load(properties), graph, backend)


def test_nothing_set_changes_nothing() -> None:
    """Without settings, the files count."""
    files = resolve(str(FIXTURES / "bert-mean"))
    assert read(files, ModelOverrides()) == read(files)


def test_settings_win_over_files(tmp_path: Path) -> None:
    """Settings win; prompts are added to those of the files."""
    folder = copy_fixture("gemma-dense", tmp_path)
    properties = _read(
        folder,
        pooling=(Pooling.CLS,),
        normalize=False,
        max_tokens=100,
        prompts={"query": "q: ", "other": "o: "},
        default_prompt_name="other",
        padding_side="left",
        pad_token_id=7,
        similarity=Similarity.DOT,
        lowercase=True,
    )
    assert properties.poolings == (Pooling.CLS,)
    assert not properties.normalize
    assert properties.max_tokens == 100
    assert properties.prompts["query"] == "q: "
    assert properties.prompts["document"] == "title: none | text: "
    assert properties.default_prompt_name == "other"
    assert (properties.padding_side, properties.pad_token_id) == ("left", 7)
    assert properties.similarity is Similarity.DOT
    assert properties.lowercase
    assert len(properties.dense_layers) == 2


def test_a_default_prompt_can_be_removed(tmp_path: Path) -> None:
    """An empty name means no prompt."""
    folder = copy_fixture("gemma-dense", tmp_path)
    edit_json(folder / "config_sentence_transformers.json", default_prompt_name="query")
    assert _read(folder).default_prompt_name == "query"
    assert not _read(folder, default_prompt_name="").default_prompt_name


def test_the_activation_of_a_cross_encoder() -> None:
    """The activation can be set."""
    properties = _read(FIXTURES / "cross-bert", activation=Activation.IDENTITY)
    assert properties.activation is Activation.IDENTITY


def test_a_folder_without_modules(tmp_path: Path, cache_dir: Path) -> None:
    """Without modules.json, pooling and normalize must be set; the vectors are then the same."""
    folder = copy_fixture("bert-mean", tmp_path, leave_out=["modules.json", "1_Pooling"])
    with pytest.raises(ModelError, match=r"modules\.json is missing.* set pooling and normalize"):
        _read(folder)
    with pytest.raises(ModelError, match=r"modules\.json is missing: set normalize"):
        _read(folder, pooling=(Pooling.MEAN,))
    runner = _load(folder, cache_dir, pooling=(Pooling.MEAN,), normalize=True)
    reference = expected("bert-mean")
    np.testing.assert_allclose(
        runner.run(runner.tokenize(reference["texts"]), "sentence_embedding"),
        reference["outputs"]["default"]["vectors"],
        rtol=0,
        atol=reference["tolerance"],
    )


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("bert-mean", {"max_tokens": 999}, "json: max_tokens is set to 999, but must be from 1 to"),
        ("bert-mean", {"max_tokens": 0}, "max_tokens is set to 0"),
        ("bert-mean", {"default_prompt_name": "query"}, "must be one of the prompts (there are"),
        ("gemma-dense", {"default_prompt_name": "x"}, "must be one of the prompts query, document"),
        (
            "bert-mean",
            {"activation": Activation.SIGMOID},
            "activation is set, but the model's kind",
        ),
        ("cross-bert", {"normalize": True}, "normalize is set, but the model's kind is cross"),
        ("splade-bert", {"pooling": (Pooling.CLS,)}, "pooling is set, but the model is a Sparse"),
        (
            "gemma-dense",
            {"pooling": (Pooling.CLS, Pooling.MEAN)},
            "2_Dense/config.json: the module needs 36 values, but the pooling that is set",
        ),
    ],
)
def test_settings_that_do_not_fit(name: str, overrides: dict[str, Any], message: str) -> None:
    """The error names the setting and the folder or file that it does not fit."""
    with pytest.raises(ModelError) as caught:
        _read(FIXTURES / name, **overrides)
    assert message in str(caught.value)
    assert str(FIXTURES / name) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "key"),
    [
        ("config.json", {"pad_token_id": None}, "pad_token_id"),
        ("config.json", {"max_position_embeddings": None}, "max_tokens"),
    ],
)
def test_errors_name_what_to_set(
    tmp_path: Path, file: str, changes: dict[str, Any], key: str
) -> None:
    """The error for a missing property names the setting for it, and setting it helps."""
    folder = copy_fixture("qwen3-last", tmp_path)
    edit_json(folder / "tokenizer_config.json", pad_token=None, model_max_length=None)
    edit_json(folder / "config.json", pad_token_id=3, max_position_embeddings=64)
    edit_json(folder / file, **changes)
    with pytest.raises(ModelError, match=f"set {key} for this model in the configuration"):
        _read(folder)
    values = {"pad_token_id": 9, "max_tokens": 50}
    assert getattr(_read(folder, **{key: values[key]}), key) == values[key]


def _rename_output(folder: Path, old: str, new: str) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Identity", [old], [new]))
    model.graph.output[0].name = new
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("name", "old"), [("bert-cls", "last_hidden_state"), ("cross-bert", "logits")]
)
def test_an_output_of_another_name(tmp_path: Path, cache_dir: Path, name: str, old: str) -> None:
    """An output with an unknown name can be configured."""
    folder = copy_fixture(name, tmp_path)
    _rename_output(folder, old, "odd")
    with pytest.raises(ModelError, match="set output for this model in the configuration"):
        _load(folder, cache_dir)
    with pytest.raises(ModelError, match="output is set to 'none', but the graph's outputs are o"):
        _load(folder, cache_dir, output="none")
    runner = _load(folder, cache_dir, output="odd")
    plain = _load(FIXTURES / name, cache_dir)
    sequences = (
        plain.tokenize_pairs([["a", "b"]]) if old == "logits" else plain.tokenize(["a text"])
    )
    output = plain.graph.outputs[0]
    np.testing.assert_array_equal(runner.run(sequences, output), plain.run(sequences, output))


def _pooled(folder: Path, *, normalize: bool) -> None:
    """Make an export whose only output is the first token's vector."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    index = helper.make_tensor("first", onnx.TensorProto.INT64, [], [0])
    model.graph.initializer.append(index)
    gather = helper.make_node("Gather", ["last_hidden_state", "first"], ["cls"], axis=1)
    scaled = helper.make_node("LpNormalization", ["cls"], ["scaled"], axis=-1)
    model.graph.node.extend([gather, scaled])
    name = "scaled" if normalize else "cls"
    model.graph.node.append(helper.make_node("Identity", [name], ["sentence_embedding"]))
    described = helper.make_tensor_value_info("sentence_embedding", 1, ["batch", "size"])
    del model.graph.output[:]
    model.graph.output.append(described)
    onnx.save(model, path)


@pytest.mark.parametrize("overrides", [{"pooling": (Pooling.CLS,)}, {"normalize": False}])
def test_a_setting_wins_over_the_pooling_of_an_export(
    cache_dir: Path, overrides: dict[str, Any]
) -> None:
    """A configured pooling may differ from the one in the graph."""
    runner = _load(FIXTURES / "gemma-dense", cache_dir, **overrides)
    plain = _load(FIXTURES / "gemma-dense", cache_dir)
    sequences = plain.tokenize(["some words"])
    ours = runner.run(sequences, "sentence_embedding")
    assert np.abs(ours - plain.run(sequences, "sentence_embedding")).max() > 1e-3


@pytest.mark.parametrize("normalize", [True, False])
def test_graphs_that_only_pool(tmp_path: Path, cache_dir: Path, *, normalize: bool) -> None:
    """Normalisation is added to a graph that pools without it."""
    folder = copy_fixture("bert-cls", tmp_path)
    _pooled(folder, normalize=normalize)
    runner = _load(folder, cache_dir)
    both = ("sentence_embedding", "pooled_embedding")
    assert runner.graph.outputs == (both[:1] if normalize else both)
    reference = expected("bert-cls")
    np.testing.assert_allclose(
        runner.run(runner.tokenize(reference["texts"]), "sentence_embedding"),
        reference["outputs"]["default"]["vectors"],
        rtol=0,
        atol=reference["tolerance"],
    )


def test_a_pooled_vector_that_does_not_fit(tmp_path: Path, cache_dir: Path) -> None:
    """A graph whose vectors contradict modules.json in size or scaling is refused."""
    folder = copy_fixture("bert-cls", tmp_path)
    _pooled(folder, normalize=True)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with pytest.raises(ModelError, match="set normalize for this model in the configuration"):
        _load(folder, cache_dir)
    assert _load(folder, cache_dir, normalize=True).graph.outputs[0]
    wide = (Pooling.CLS, Pooling.MEAN)
    with pytest.raises(ModelError, match="vectors of 36 values, not the 72"):
        _load(folder, cache_dir, pooling=wide, normalize=True)


def test_settings_that_change_vectors_change_the_hash(cache_dir: Path) -> None:
    """Settings that change vectors change the content hash, and other settings do not."""
    folder = FIXTURES / "bert-cls"
    cases: list[dict[str, Any]] = [
        {},
        {"pooling": (Pooling.MEAN,)},
        {"normalize": False},
        {"prompts": {"query": "q: "}},
        {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        {"lowercase": True},
        {"file": "model.safetensors"},
        {"weight_type": WeightType.INT8},
        {"max_tokens": 10},
    ]
    runners = [_load(folder, cache_dir, **case) for case in cases]
    hashes = [runner.graph.content_hash for runner in runners]
    assert len(set(hashes)) == len(cases)
    same: list[dict[str, Any]] = [
        {"similarity": Similarity.DOT},
        {"padding_side": "left"},
        {"pad_token_id": 1},
        {"file": "onnx/model.onnx"},
        {"normalize": True},
    ]
    for case in same:
        assert _load(folder, cache_dir, **case).graph.content_hash == hashes[0]


def test_path_and_age_do_not_change_the_hash(tmp_path: Path, cache_dir: Path) -> None:
    """The path, the age of the files and a README do not change the content hash."""
    before = _load(FIXTURES / "gemma-dense", cache_dir).graph
    folder = copy_fixture("gemma-dense", tmp_path / "elsewhere")
    (folder / "README.md").write_text("# A model\n")
    for path in folder.rglob("*"):
        path.touch()
    assert _load(folder, cache_dir).graph == before


Write = Callable[[Path], None]


def _write_prompt(folder: Path) -> None:
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "other: "})


def _write_activation(folder: Path) -> None:
    edit_json(folder / "2_Dense" / "config.json", activation_function="torch.nn.ReLU")


def _write_heads(folder: Path) -> None:
    edit_json(folder / "config.json", num_attention_heads=4)


def _write_dense(folder: Path) -> None:
    path = folder / "2_Dense" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _drop_normalize(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))


@pytest.mark.parametrize(
    "write", [_write_prompt, _write_activation, _write_heads, _write_dense, _drop_normalize]
)
def test_changed_files_change_the_hash(tmp_path: Path, cache_dir: Path, write: Write) -> None:
    """Prompts, modules and their weights change the content hash."""
    before = _load(FIXTURES / "albert-dense", cache_dir).graph
    folder = copy_fixture("albert-dense", tmp_path)
    write(folder)
    assert _load(folder, cache_dir).graph.content_hash != before.content_hash


def test_notes_in_config_do_not_change_the_hash(tmp_path: Path, cache_dir: Path) -> None:
    """Keys of config.json that change no vector do not change the content hash."""
    before = _load(FIXTURES / "albert-dense", cache_dir).graph
    folder = copy_fixture("albert-dense", tmp_path)
    edit_json(folder / "config.json", transformers_version="9.9.9", _name_or_path="/elsewhere")
    assert _load(folder, cache_dir).graph.content_hash == before.content_hash
