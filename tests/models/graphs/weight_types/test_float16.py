from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.graphs.weight_types.float16 import convert_to_float16
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import DEFAULT_MODEL, FIXTURES, Runner, expected

FLOAT16 = ModelOverrides(weight_type=WeightType.FLOAT16)


def _load(source: str | Path, cache_dir: Path) -> Runner:
    """Load a float16 graph on the CPU, which is slow but exact."""
    files = resolve(str(source))
    properties = read(files, FLOAT16)
    graph = prepare(files, properties, cache_dir=cache_dir)
    return Runner(
        properties, Tokenizer.load(properties), graph, OnnxBackend(graph.path, device="cpu")
    )


def test_the_default_model_stays_very_near(cache_dir: Path) -> None:
    """Float16 vectors of the default model differ from the reference, but only slightly."""
    runner = _load(DEFAULT_MODEL, cache_dir)
    wanted = np.load(FIXTURES / "all-MiniLM-L6-v2" / "expected.npz")["vectors"]
    sequences = runner.tokenize(expected("all-MiniLM-L6-v2")["texts"])
    vectors = np.concatenate([runner.run([one], "sentence_embedding") for one in sequences])
    assert vectors.dtype == np.float32
    cosines = (vectors * wanted).sum(axis=1)
    assert cosines.min() > 0.9999
    assert 1e-5 < np.abs(vectors - wanted).max() < 5e-3
    assert runner.graph.weight_type == "float16"


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls", "mpnet-mean", "gemma-dense"])
def test_built_and_exported_graphs_can_be_converted(cache_dir: Path, name: str) -> None:
    """Weight matrices become float16, and the vectors stay close to the reference."""
    runner = _load(FIXTURES / name, cache_dir)
    model = onnx.load(runner.graph.path)
    onnx.checker.check_model(model)
    halves = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT16]
    assert len(halves) >= 12
    reference = expected(name)
    sequences = runner.tokenize(reference["texts"])
    vectors = np.concatenate([runner.run([one], "sentence_embedding") for one in sequences])
    wanted = np.array(reference["outputs"]["default"]["vectors"], np.float32)
    assert np.abs(vectors - wanted).max() < 0.02


def test_spaces_of_two_types_do_not_mix(tmp_path: Path) -> None:
    """Each weight type of a model has its own fingerprint."""
    files = resolve(str(FIXTURES / "bert-mean"))
    hashes = {
        prepare(files, read(files, overrides), cache_dir=tmp_path).content_hash
        for overrides in (
            FLOAT16,
            ModelOverrides(),
            ModelOverrides(weight_type=WeightType.INT8),
        )
    }
    assert len(hashes) == 3


def test_a_weight_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """A weight beyond the range of float16 is named, and does not become infinity."""
    files = resolve(str(FIXTURES / "bert-mean"))
    plain = prepare(files, read(files), cache_dir=tmp_path)
    model = onnx.load(plain.path)
    matrix = next(
        one
        for one in model.graph.initializer
        if len(one.dims) == 2 and any(node.input[1:2] == [one.name] for node in model.graph.node)
    )
    values = onnx.numpy_helper.to_array(matrix).copy()
    values[0, 0] = 1e6
    matrix.CopyFrom(onnx.numpy_helper.from_array(values, matrix.name))
    (tmp_path / "large").mkdir()
    onnx.save(model, tmp_path / "large" / "model.onnx")
    (tmp_path / "half").mkdir()
    with pytest.raises(ModelError, match=r"holds 1e\+06, which float16 cannot"):
        convert_to_float16(tmp_path / "large" / "model.onnx", tmp_path / "half")
