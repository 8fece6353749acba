"""Folders that cannot be served, and are recognised as what they are."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from tests.models.breaking import edit_graph
from tests.models.runner import copy_fixture, edit_json


def _without_modules(architecture: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "modules.json").unlink()
        edit_json(folder / "config.json", architectures=[architecture])

    return apply


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "b"}')


def _adapter_alone(folder: Path) -> None:
    _adapter(folder)
    (folder / "config.json").unlink()


def _own_module(folder: Path) -> None:
    path = folder / "modules.json"
    entries = json.loads(path.read_text())
    entries[1]["type"] = "my_modules.Pooling"
    path.write_text(json.dumps(entries))


def _first_module(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        entries = json.loads(path.read_text())
        entries[0]["type"] = f"sentence_transformers.models.{name}"
        path.write_text(json.dumps(entries))

    return apply


def _fixed_batch(folder: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            for axis, size in zip(value.type.tensor_type.shape.dim, (1, 32), strict=True):
                axis.dim_value = size

    edit_graph(fix)(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "bert-mean",
            _without_modules("Qwen3ForCausalLM"),
            "If it is a reranker.*pair_template.*true_token",
        ),
        ("bert-mean", _without_modules("BertForMaskedLM"), "SPLADE.*SparseEncoder"),
        ("bert-mean", _adapter, r"adapter_config\.json.*an adapter without b: serve that model"),
        ("bert-mean", _adapter_alone, r"adapter_config\.json.*or put config\.json and the weights"),
        ("bert-mean", _first_module("IDF"), "its name is SparseStaticEmbedding since"),
        ("bert-mean", _first_module("SparseStaticEmbedding"), "a table named weight"),
        ("bert-mean", _own_module, r"'my_modules\.Pooling' is code of the model's own"),
        ("bert-cls", _fixed_batch, r"free batch and length, not \[1, 32\].*dynamic axes"),
    ],
)
def test_the_error_says_what_it_is(
    tmp_path: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    """The error names the kind of folder and what to do, and does not ask for other settings."""
    folder = copy_fixture(name, tmp_path)
    change(folder)
    files = resolve(str(folder))
    with pytest.raises(ModelError, match=message):
        prepare(files, read(files), cache_dir=tmp_path / "cache")
