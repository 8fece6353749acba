import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tensors.torch_tensors import TorchTensors
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected
from tests.models.tensors.test_torch_file import save, tensor

INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"


def _shard(folder: Path, *, index: str = INDEX) -> dict[str, str]:
    """Split the tensors of a folder into two files; return the file of each."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(name for name, values in tensors.items() if values.dtype == np.float32)
    stem, suffix, *_ = index.split(".")
    homes: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        held = {name: tensors[name] for name in part}
        if index == INDEX:
            save_file(held, folder / file)
        else:
            _save_torch(folder / file, held)
        homes |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return homes


def _vectors(folder: Path, cache_dir: Path) -> NDArray[np.float32]:
    runner = Runner.load(folder, cache_dir)
    return runner.run(runner.tokenize(["one text", "and another one"]), "sentence_embedding")


def _prepare(folder: Path, cache_dir: Path, **overrides: Any) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files, ModelOverrides(**overrides)), cache_dir=cache_dir)


@pytest.mark.parametrize("index", [INDEX, TORCH_INDEX])
def test_weights_in_several_files(tmp_path: Path, index: str) -> None:
    """Shards give the same vectors as one file, and each changes the content hash."""
    folder = copy_fixture("bert-mean", tmp_path)
    homes = _shard(folder, index=index)
    cache = tmp_path / "cache"
    np.testing.assert_array_equal(_vectors(folder, cache), _vectors(FIXTURES / "bert-mean", cache))
    before = _prepare(folder, cache).content_hash
    last = folder / max(homes.values())
    held = {
        name: values
        for name, values in load_file(FIXTURES / "bert-mean" / "model.safetensors").items()
        if homes.get(name) == last.name
    }
    name = max(held)
    held[name] = held[name] + 1
    if index == INDEX:
        save_file(held, last)
    else:
        _save_torch(last, held)
    assert _prepare(folder, cache).content_hash != before


def test_shards_that_are_missing_or_wrong(tmp_path: Path) -> None:
    """The error names all missing files, a file without its tensor, or a file elsewhere."""
    folder = copy_fixture("bert-mean", tmp_path)
    homes = _shard(folder)
    first, second = sorted(set(homes.values()))
    whole = (folder / first).read_bytes()
    save_file({"other": np.zeros(1, np.float32)}, folder / first)
    with pytest.raises(ModelError, match=f"{first} has no .*, which {INDEX} puts there"):
        _prepare(folder, tmp_path / "cache")
    (folder / first).write_bytes(whole)
    for name in (first, second):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{INDEX}: {first}, {second} missing in"):
        _prepare(folder, tmp_path / "cache")
    for place in ("../other.safetensors", "/etc/passwd", ""):
        homes[min(homes)] = place
        (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
        with pytest.raises(ModelError, match="is not a file name"):
            _prepare(folder, tmp_path / "cache")
    homes[min(homes)] = "model.bin"
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    with pytest.raises(ModelError, match=r"'model\.bin' does not end with \.safetensors"):
        _prepare(folder, tmp_path / "cache")


@pytest.mark.parametrize("index", [INDEX, TORCH_INDEX])
def test_a_tensor_in_two_shards(tmp_path: Path, index: str) -> None:
    """It is unknown which of two tensors counts, so the error names both files."""
    folder = copy_fixture("bert-mean", tmp_path)
    homes = _shard(folder, index=index)
    first, second = sorted(set(homes.values()))
    tensors = load_file(FIXTURES / "bert-mean" / "model.safetensors")
    twice = min(name for name, home in homes.items() if home == first)
    held = {name: tensors[name] for name, home in homes.items() if home == second or name == twice}
    if index == INDEX:
        save_file(held, folder / second)
    else:
        _save_torch(folder / second, held)
    with pytest.raises(ModelError, match=f"{second} has {twice}, which {index} puts in {first}"):
        _prepare(folder, tmp_path / "cache")


def test_torch_weights_are_read_one_by_one(tmp_path: Path) -> None:
    """Memory holds one tensor, not the file."""
    size = 1 << 18
    content = {
        f"layer.{n}": tensor(count=size, key=str(n), shape=(size,), strides=(1,)) for n in range(24)
    }
    held = {str(n): bytes(4 * size) for n in range(24)}
    path = save(tmp_path / "pytorch_model.bin", content, held["0"], more=held)
    with TorchTensors(path) as tensors:
        tracemalloc.start()
        for name in sorted(tensors.names):
            tensors.read(name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < path.stat().st_size / 6


def test_weights_that_torch_saved(tmp_path: Path) -> None:
    """Weights in torch's format give the same vectors."""
    folder = copy_fixture("bert-mean", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    floats = {name: values for name, values in tensors.items() if values.dtype == np.float32}
    _save_torch(folder / "pytorch_model.bin", floats)
    cache = tmp_path / "cache"
    np.testing.assert_array_equal(_vectors(folder, cache), _vectors(FIXTURES / "bert-mean", cache))


def test_dense_weights_that_torch_saved(tmp_path: Path) -> None:
    """A Dense module with weights in torch's format gives the same vectors."""
    folder = copy_fixture("gemma-dense", tmp_path)
    for name in ("2_Dense", "3_Dense"):
        tensors = load_file(folder / name / "model.safetensors")
        _save_torch(folder / name / "pytorch_model.bin", tensors)
        (folder / name / "model.safetensors").unlink()
    cache = tmp_path / "cache"
    np.testing.assert_array_equal(
        _vectors(folder, cache), _vectors(FIXTURES / "gemma-dense", cache)
    )


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls"])
def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    """The backbone, its tokenizer and its limits may be in a subfolder."""
    folder = copy_fixture(name, tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer").mkdir()
    for path in list(folder.iterdir()):
        stays = path.name in {"modules.json", "config_sentence_transformers.json"}
        if not stays and not path.name[0].isdigit():
            shutil.move(path, folder / "0_Transformer")
    runner = Runner.load(folder, tmp_path / "cache")
    reference = expected(name)
    assert runner.properties.max_tokens == reference["settings"]["max_seq_length"]
    sequences = runner.tokenize(reference["texts"])
    assert [s.input_ids.tolist() for s in sequences] == reference["token_ids"]
    np.testing.assert_allclose(
        runner.run(sequences, "sentence_embedding"),
        reference["outputs"]["default"]["vectors"],
        rtol=0,
        atol=reference["tolerance"],
    )


def test_a_configured_file(tmp_path: Path) -> None:
    """The configuration chooses among several files."""
    folder = copy_fixture("bert-cls", tmp_path)
    cache = tmp_path / "cache"
    usual = _prepare(folder, cache)
    built = _prepare(folder, cache, file="model.safetensors")
    assert built.content_hash != usual.content_hash
    shutil.move(folder / "onnx" / "model.onnx", folder / "onnx" / "model_O2.onnx")
    assert _prepare(folder, cache, file="onnx/model_O2.onnx") == usual
    assert _prepare(folder, cache) == built


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../bert-mean/model.safetensors", "leads out of the model folder"),
        ("/etc/passwd", "leads out of the model folder"),
        ("onnx/model_q4.onnx", "is missing: the configuration names it"),
        ("config.json", "file must end with .onnx, .safetensors, .bin"),
    ],
)
def test_a_configured_file_that_cannot_be_used(tmp_path: Path, file: str, message: str) -> None:
    """The error says what is wrong with the configured file."""
    with pytest.raises(ModelError, match="file") as caught:
        _prepare(FIXTURES / "bert-cls", tmp_path, file=file)
    assert message in str(caught.value)


def test_synonyms_of_the_activation(tmp_path: Path) -> None:
    """Three names mean the tanh approximation of GELU."""
    cache = tmp_path / "cache"
    found = []
    for number, name in enumerate(("gelu_new", "gelu_pytorch_tanh", "gelu_fast")):
        folder = copy_fixture("bert-mean", tmp_path / str(number))
        edit_json(folder / "config.json", hidden_act=name)
        found.append(_vectors(folder, cache))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - _vectors(FIXTURES / "bert-mean", cache)).max() > 1e-5


def _save_torch(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Write tensors as views of one storage."""
    total = sum(values.size for values in tensors.values())
    content, offset = {}, 0
    for name, values in tensors.items():
        strides = tuple(step // values.itemsize for step in values.strides)
        content[name] = tensor(count=total, offset=offset, shape=values.shape, strides=strides)
        offset += values.size
    save(path, content, b"".join(values.tobytes() for values in tensors.values()))
