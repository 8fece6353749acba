from pathlib import Path

import pytest

from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.remote.fingerprint import ServedFingerprint, find_fingerprint
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, copy_fixture

PLACE = ("10.0.0.1:8001", "minilm", "")
NOTHING = ModelOverrides()
OTHER = "0" * 64


def find(
    folder: Path,
    cache: Path,
    *,
    declared: str,
    overrides: ModelOverrides = NOTHING,
    place: tuple[str, ...] = PLACE,
) -> ServedFingerprint:
    """Return the fingerprint of a model with its files in a folder."""
    files = resolve(str(folder))
    return find_fingerprint(
        files, read(files, overrides), overrides, declared=declared, place=place, cache_dir=cache
    )


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """A model folder without the weights."""
    return copy_fixture("bert-mean", tmp_path, leave_out=["model.safetensors"])


@pytest.mark.parametrize("weight_type", [WeightType.FLOAT32, WeightType.INT8])
def test_a_declared_hash_of_the_weights_is_used(tmp_path: Path, weight_type: WeightType) -> None:
    """A declared hash that equals that of the files is used, for any weight type."""
    folder = FIXTURES / "bert-mean"
    files = resolve(str(folder))
    properties = read(files, ModelOverrides(weight_type=weight_type))
    declared = prepare(files, properties, cache_dir=tmp_path).content_hash
    assert find(folder, tmp_path, declared=declared) == ServedFingerprint(declared, weight_type)


def test_without_weights_the_declared_one_is_used(without_weights: Path, tmp_path: Path) -> None:
    """Without weights the declared hash is used; settings that override it change it."""
    assert find(without_weights, tmp_path, declared=OTHER).value == OTHER
    changed = ModelOverrides(prompts={"query": "q: "})
    derived = [
        find(without_weights, tmp_path, declared=OTHER, overrides=changed, place=place).value
        for place in (PLACE, ("10.0.0.2:8001", "minilm", ""))
    ]
    assert derived[0] == derived[1] != OTHER


def test_a_declared_hash_of_other_weights_is_not_used(tmp_path: Path) -> None:
    """A declared hash that differs from that of the files is not used."""
    found = find(FIXTURES / "bert-mean", tmp_path, declared=OTHER)
    assert found.contradicted
    assert found.value != OTHER


def test_undeclared_fingerprints_all_differ(without_weights: Path, tmp_path: Path) -> None:
    """If nothing is declared, another server, version or setting changes the fingerprint."""
    values = [
        find(folder, tmp_path, declared="", place=place, overrides=overrides).value
        for folder in (without_weights, FIXTURES / "bert-cls")
        for place in (PLACE, ("10.0.0.2:8001", "minilm", ""), ("10.0.0.1:8001", "minilm", "2"))
        for overrides in (NOTHING, ModelOverrides(normalize=False))
    ]
    assert len(set(values)) == len(values) == 12
    assert find(without_weights, tmp_path, declared="").value == values[0]
