import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected


def _prepare(folder: Path, cache_dir: Path) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files), cache_dir=cache_dir)


def _edit_tensors(folder: Path, **changes: Any) -> None:
    """Set tensors, with double underscores for the dots of names; None removes one."""
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def test_a_graph_is_plain_onnx(tmp_path: Path) -> None:
    """A built graph passes the checker and uses standard operators of an old version only."""
    graph = _prepare(FIXTURES / "bert-mean", tmp_path)
    onnx.checker.check_model(str(graph.path), full_check=True)
    model = onnx.load(graph.path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}
    assert graph.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert graph.outputs == ("sentence_embedding", "pooled_embedding", "token_vectors")
    assert graph.weight_type == "float32"
    tensors = load_file(FIXTURES / "bert-mean" / "model.safetensors")
    used = [v for k, v in tensors.items() if "pooler" not in k and "position_ids" not in k]
    assert graph.weight_bytes == sum(4 * tensor.size for tensor in used)


def test_outputs_of_exports_get_our_names(tmp_path: Path) -> None:
    """An exported graph has our outputs alone, and no node copies the token vectors."""
    graph = _prepare(FIXTURES / "bert-cls", tmp_path)
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    assert [(v.name, v.shape[1:]) for v in session.get_outputs()] == [
        ("sentence_embedding", [36]),
        ("pooled_embedding", [36]),
        ("token_vectors", ["tokens", 36]),
    ]
    (makes,) = (node for node in onnx.load(graph.path).graph.node if "token_vectors" in node.output)
    assert makes.op_type != "Identity"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights(tmp_path: Path, dtype: Any) -> None:
    """Graphs with half-precision weights compute in float32."""
    folder = copy_fixture("bert-mean", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    floats = {k: v for k, v in tensors.items() if v.dtype == np.float32}
    save_file({k: v.astype(dtype) for k, v in floats.items()}, folder / "model.safetensors")
    runner = Runner.load(folder, tmp_path / "cache")
    reference = expected("bert-mean")
    vectors = runner.run(runner.tokenize(reference["texts"]), "sentence_embedding")
    wanted = np.array(reference["outputs"]["default"]["vectors"])
    assert runner.graph.weight_type == "float32"
    assert (vectors * wanted).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("prefixed", [True, False])
def test_tensor_names_of_other_checkpoints(tmp_path: Path, *, prefixed: bool) -> None:
    """A prefix and TensorFlow's names of layer normalisations change nothing."""
    folder = copy_fixture("bert-mean", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        ("bert." if prefixed else "")
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")
    runner = Runner.load(folder, tmp_path / "cache")
    plain = Runner.load(FIXTURES / "bert-mean", tmp_path / "cache")
    sequences = plain.tokenize(["one text", "and another one"])
    np.testing.assert_array_equal(
        runner.run(sequences, "sentence_embedding"), plain.run(sequences, "sentence_embedding")
    )


def _gelu_new(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu_new", _gelu_new),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("swish", lambda x: x / (1 + np.exp(-x))),
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("tanh", np.tanh),
    ],
)
def test_activations(tmp_path: Path, name: str, function: Any) -> None:
    """The activation of config.json is the one in the graph."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", hidden_act=name)
    graph = _prepare(folder, tmp_path / "cache")
    model = onnx.load(graph.path)
    # Between the two layers of the first feed-forward part.
    inner = next(n for n in model.graph.node if "intermediate.dense.bias" in "".join(n.input))
    outer = next(n for n in model.graph.node if ".0.output.dense.weight" in "".join(n.input))
    for value in (inner.output[0], outer.input[0]):
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids = np.array([[2, 40, 50, 3]])
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    before, after = session.run([inner.output[0], outer.input[0]], feeds)
    np.testing.assert_allclose(after, function(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be absolute"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu"),
        ({"is_decoder": True}, "is_decoder must be false"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps must be a small number"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a whole number"),
        ({"model_type": "deberta"}, "model_type must be one of bert, roberta, xlm-roberta"),
        ({"model_type": "albert", "num_hidden_groups": 2}, "num_hidden_groups must be 1"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.self.query.weight is missing"),
        ({"vocab_size": 999}, "word_embeddings.weight has shape [1200, 32], not [999, 32]"),
    ],
)
def test_what_does_not_fit_the_configuration(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """One line names the wrong key or tensor."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        _prepare(folder, tmp_path / "cache")
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_every_wrong_tensor_is_named(tmp_path: Path) -> None:
    """One message names all tensors that are missing or have a wrong shape or type."""
    folder = copy_fixture("bert-mean", tmp_path)
    _edit_tensors(
        folder,
        embeddings__LayerNorm__bias=None,
        encoder__layer__1__output__dense__bias=np.zeros(31, np.float32),
        encoder__layer__0__output__dense__bias=np.zeros(32, np.int32),
    )
    with pytest.raises(ModelError) as caught:
        _prepare(folder, tmp_path / "cache")
    message = str(caught.value)
    assert "embeddings.LayerNorm.bias is missing" in message
    assert "encoder.layer.1.output.dense.bias has shape [31], not [32]" in message
    assert "encoder.layer.0.output.dense.bias has type I32" in message


@pytest.mark.parametrize(
    ("name", "file"),
    [("bert-mean", "model.safetensors"), ("bert-cls", "onnx/model.onnx")],
)
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, name: str, file: str) -> None:
    """A Git LFS pointer in place of the weights is reported as such."""
    folder = copy_fixture(name, tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
    (folder / file).write_text(pointer)
    with pytest.raises(ModelError, match="is a Git LFS pointer"):
        _prepare(folder, tmp_path / "cache")


def test_missing_and_broken_weights(tmp_path: Path) -> None:
    """A folder without weights, with a broken file or with a broken index is an error."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        _prepare(folder, tmp_path / "cache")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing, and so is .*onnx"):
        _prepare(folder, tmp_path / "cache")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="weight_map must be an object"):
        _prepare(folder, tmp_path / "cache")


def test_quantised_variants_are_ignored(tmp_path: Path) -> None:
    """Only `model.onnx` is used, and not a variant beside it."""
    folder = copy_fixture("bert-cls", tmp_path)
    built = _prepare(copy_fixture("bert-cls", tmp_path / "b", leave_out=["onnx"]), tmp_path / "c")
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_qint8.onnx")
    assert _prepare(folder, tmp_path / "c") == built


def test_the_content_hash_depends_on_the_content(tmp_path: Path) -> None:
    """It is the same for copies, and changes with weights, tokenizer, pooling and prompts."""
    folder = copy_fixture("bert-mean", tmp_path)
    cache = tmp_path / "cache"
    original = _prepare(FIXTURES / "bert-mean", cache).content_hash
    os.utime(folder / "model.safetensors", (0, 0))
    assert _prepare(folder, cache).content_hash == original
    hashes = {original}
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "q: "})
    hashes.add(_prepare(folder, cache).content_hash)
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    hashes.add(_prepare(folder, cache).content_hash)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    hashes.add(_prepare(folder, cache).content_hash)
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    hashes.add(_prepare(folder, cache).content_hash)
    _edit_tensors(folder, embeddings__LayerNorm__bias=np.ones(32, np.float32))
    hashes.add(_prepare(folder, cache).content_hash)
    assert len(hashes) == 6
    assert all(len(value) == 64 for value in hashes)


def test_a_hit_is_the_same_entry(tmp_path: Path) -> None:
    """The second start uses the first one's files and writes none."""
    first = _prepare(FIXTURES / "bert-mean", tmp_path)
    written = first.path.stat().st_mtime_ns
    assert _prepare(FIXTURES / "bert-mean", tmp_path) == first
    assert first.path.stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 1


def test_another_padding_token_has_another_entry(tmp_path: Path) -> None:
    """A graph for another padding token is not reused: its positions would be wrong."""
    files = resolve(str(FIXTURES / "roberta-mean"))
    properties = read(files)
    changed = replace(properties, pad_token_id=properties.pad_token_id + 1)
    first, second = (prepare(files, one, cache_dir=tmp_path) for one in (properties, changed))
    assert first.path != second.path
    assert first.path.exists()
    assert second.path.exists()


def test_entries_are_flushed_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files of an entry are flushed before the rename: a power cut leaves none empty."""
    flushed: set[int] = set()
    flush, rename = os.fsync, Path.rename
    unflushed: list[str] = []

    def note_flush(file: int) -> None:
        flush(file)
        flushed.add(os.fstat(file).st_ino)

    def note_rename(path: Path, target: Path) -> Path:
        unflushed.extend(one.name for one in path.iterdir() if one.stat().st_ino not in flushed)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", note_rename)
    graph = _prepare(FIXTURES / "bert-mean", tmp_path)
    assert len(list(graph.path.parent.iterdir())) >= 3
    assert len(flushed) >= 3
    assert unflushed == []


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls"])
def test_a_hit_does_not_load_the_builders(tmp_path: Path, name: str) -> None:
    """A start from the cache does not import the onnx package."""
    folder = FIXTURES / name
    _prepare(folder, tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from embedgrpc.models.folder import properties\n"
        "from embedgrpc.models.graphs import graph\n"
        "from embedgrpc.models.sources import source\n"
        f"files = source.resolve({str(folder)!r})\n"
        f"graph.prepare(files, properties.read(files), cache_dir=Path({str(tmp_path)!r}))\n"
        "print('onnx' in sys.modules, 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("file", ["model.onnx", "model.weights", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "flip a bit"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, file: str, damage: str) -> None:
    """An entry with a truncated, changed or missing file is built again."""
    graph = _prepare(FIXTURES / "bert-mean", tmp_path)
    whole = {path.name: path.read_bytes() for path in graph.path.parent.iterdir()}
    victim = graph.path.parent / file
    if damage == "remove":
        victim.unlink()
    elif damage == "truncate":
        victim.write_bytes(whole[file][: len(whole[file]) // 2])
    else:
        middle = len(whole[file]) // 2
        changed = bytes([whole[file][middle] ^ 1])
        victim.write_bytes(whole[file][:middle] + changed + whole[file][middle + 1 :])
    assert _prepare(FIXTURES / "bert-mean", tmp_path) == graph
    assert {path.name: path.read_bytes() for path in graph.path.parent.iterdir()} == whole
    assert len(list(tmp_path.iterdir())) == 1


def test_an_entry_with_another_manifest_is_rebuilt(tmp_path: Path) -> None:
    """An entry whose manifest is other JSON is built again."""
    graph = _prepare(FIXTURES / "bert-mean", tmp_path)
    for content in ("[]", '{"digests": 1, "remembered": {}}', '{"digests": {}, "remembered": 3}'):
        (graph.path.parent / "manifest.json").write_text(content)
        assert _prepare(FIXTURES / "bert-mean", tmp_path) == graph
        assert "digests" in json.loads((graph.path.parent / "manifest.json").read_text())


def test_processes_may_build_at_once(tmp_path: Path) -> None:
    """Several processes that start on an empty cache end with one complete entry."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from embedgrpc.models.folder import properties\n"
        "from embedgrpc.models.graphs import graph\n"
        "from embedgrpc.models.sources import source\n"
        "import embedgrpc.models.graphs.build\n"
        f"files = source.resolve({str(FIXTURES / 'bert-mean')!r})\n"
        "told = properties.read(files)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(graph.prepare(files, told, cache_dir=Path({str(tmp_path)!r})).path)\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    paths = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert paths == {str(_prepare(FIXTURES / "bert-mean", tmp_path).path)}
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    """A build removes old unfinished entries, but not one that another process may be writing."""
    old, new = tmp_path / ".unfinished-old", tmp_path / ".unfinished-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.weights").write_bytes(b"half")
    os.utime(old, (0, 0))
    _prepare(FIXTURES / "bert-mean", tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_leftover_that_cannot_be_removed_does_no_harm(tmp_path: Path) -> None:
    """A build succeeds although an old unfinished entry is not a folder and stays."""
    odd = tmp_path / ".unfinished-odd"
    odd.write_bytes(b"")
    os.utime(odd, (0, 0))
    assert _prepare(FIXTURES / "bert-mean", tmp_path).path.exists()


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """The error names the folder that cannot be written to."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cache folder .*file cannot be used"):
        _prepare(FIXTURES / "bert-mean", tmp_path / "file")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """A failed build removes the files that it wrote."""
    folder = copy_fixture("bert-mean", tmp_path)
    _edit_tensors(folder, embeddings__LayerNorm__bias=None)
    cache = tmp_path / "cache"
    with pytest.raises(ModelError):
        _prepare(folder, cache)
    assert not list(cache.iterdir())
    shutil.copy(FIXTURES / "bert-mean" / "model.safetensors", folder)
    assert _prepare(folder, cache).path.exists()
