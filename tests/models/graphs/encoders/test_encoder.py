import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.encoders.relative_positions import BUCKETS, distance_buckets
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json

TYPED = ("input_ids", "attention_mask", "token_type_ids")


def _prepare(folder: Path, cache_dir: Path) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files), cache_dir=cache_dir)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("roberta-mean", TYPED[:2]),
        ("distilbert-mean", TYPED[:2]),
        ("mpnet-mean", TYPED[:2]),
        ("albert-dense", TYPED),
        ("cross-electra", TYPED),
        ("cross-distilbert", TYPED[:2]),
        ("cross-mpnet", TYPED[:2]),
    ],
)
def test_graphs_are_plain_onnx(tmp_path: Path, name: str, inputs: tuple[str, ...]) -> None:
    """A built graph passes the checker and has the inputs of its family."""
    graph = _prepare(FIXTURES / name, tmp_path)
    onnx.checker.check_model(str(graph.path), full_check=True)
    assert graph.inputs == inputs
    assert [value.name for value in onnx.load(graph.path).graph.input] == list(inputs)


def _bucket(distance: int) -> int:
    """Return the bucket of one distance, by the published formula."""
    half = BUCKETS // 2
    start, away = (half if distance > 0 else 0), abs(distance)
    if away < half // 2:
        return start + away
    steps = math.log(away / (half // 2)) / math.log(128 / (half // 2)) * (half - half // 2)
    return start + min(half // 2 + int(steps), half - 1)


def test_buckets_of_distances() -> None:
    """Small distances have a bucket each, larger ones share, and each direction has its half."""
    distances = np.arange(-600, 601)
    wanted = [_bucket(int(distance)) for distance in distances]
    assert distance_buckets(distances).tolist() == wanted
    assert set(wanted) == set(range(BUCKETS)) - {BUCKETS // 2}


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    """The graph has the weights that ALBERT's layers share only once."""
    graph = _prepare(FIXTURES / "albert-dense", tmp_path)
    names = [tensor.name for tensor in onnx.load(graph.path).graph.initializer]
    assert sum("attention.query.weight" in name for name in names) == 1


def _edit_tensor(folder: Path, name: str, change: Any) -> None:
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mpnet-mean", "encoder.relative_attention_bias.weight"),
        ("distilbert-mean", "transformer.layer.1.ffn.lin2.bias"),
        ("albert-dense", "encoder.embedding_hidden_mapping_in.weight"),
        ("cross-electra", "electra.embeddings_project.bias"),
        ("cross-electra", "classifier.out_proj.weight"),
        ("cross-mpnet", "classifier.dense.bias"),
        ("cross-distilbert", "pre_classifier.weight"),
        ("roberta-mean", "embeddings.token_type_embeddings.weight"),
    ],
)
def test_every_tensor_is_checked(tmp_path: Path, name: str, tensor: str) -> None:
    """A tensor that is missing or has another shape is named."""
    folder = copy_fixture(name, tmp_path)
    _edit_tensor(folder, tensor, lambda values: np.concatenate([values, values]))
    with pytest.raises(ModelError, match=f"config.json: {tensor} has shape"):
        _prepare(folder, tmp_path / "cache")
    _edit_tensor(folder, tensor, lambda _: None)
    with pytest.raises(ModelError, match=f"config.json: {tensor} is missing"):
        _prepare(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("distilbert-mean", {"n_heads": 3}, "dim must be a multiple of n_heads"),
        ("distilbert-mean", {"activation": "mish"}, "activation must be one of gelu"),
        ("distilbert-mean", {"hidden_dim": None}, "hidden_dim must be a whole number"),
        ("mpnet-mean", {"relative_attention_num_buckets": 64}, "num_buckets must be 32"),
        ("albert-dense", {"inner_group_num": 2}, "inner_group_num must be 1"),
        ("albert-dense", {"embedding_size": None}, "embedding_size must be a whole number"),
    ],
)
def test_keys_of_the_family_are_checked(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    """The error names the file and the key of the family."""
    folder = copy_fixture(name, tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        _prepare(folder, tmp_path / "cache")
    assert message in str(caught.value)
    assert str(folder / "config.json") in str(caught.value)


def test_a_padding_token_in_a_text(tmp_path: Path) -> None:
    """A text that contains the padding token has the same vector alone and in a batch."""
    runner = Runner.load(FIXTURES / "roberta-mean", tmp_path)
    sequences = runner.tokenize(["one <pad> two", "a text that is longer than the other one is"])
    alone = runner.run(sequences[:1], "sentence_embedding")
    beside = runner.run(sequences, "sentence_embedding")[:1]
    assert 1 in sequences[0].input_ids[1:-1]
    np.testing.assert_allclose(beside, alone, rtol=0, atol=2e-6)


def test_type_ids_that_the_tokenizer_leaves_out(tmp_path: Path) -> None:
    """If the tokenizer's configuration leaves out type ids, all are 0."""
    folder = copy_fixture("cross-bert", tmp_path)
    runner = Runner.load(folder, tmp_path / "cache")
    assert runner.tokenize_pairs([["a", "b"]])[0].token_type_ids is not None
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    other = Runner.load(folder, tmp_path / "cache")
    assert other.tokenize_pairs([["a", "b"]])[0].token_type_ids is None
