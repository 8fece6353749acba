import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.heads.dense import append_layer
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tensors.vector_layers import (
    DENSE_ACTIVATIONS,
    VectorLayer,
    read_dense,
    read_norm,
)
from tests.models.runner import Runner, copy_fixture, edit_json, expected

VECTORS = np.linspace(-4.0, 4.0, 24, dtype=np.float32).reshape(4, 6)


def _run(folder: Path, layer: VectorLayer, *, opset: int = 17) -> NDArray[np.float32]:
    graph = onnx.GraphProto(name="layer")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6]))
    with GraphWriter(folder, graph, opset=opset) as writer:
        result = append_layer(writer, layer, "x")
        name = writer.output(result, "y")
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (values,) = session.run(None, {"x": VECTORS})
    result_values: NDArray[np.float32] = values
    return result_values


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def _softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(x)),
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "ReLU6": lambda x: np.clip(x, 0, 6),
}


@pytest.mark.parametrize("name", DENSE_ACTIVATIONS)
def test_activations(tmp_path: Path, name: str) -> None:
    """Each activation is that of torch; the layer itself is the identity."""
    config = {
        "in_features": 6,
        "out_features": 6,
        "bias": False,
        "activation_function": f"torch.nn.modules.activation.{name}",
    }
    folder = _write(tmp_path / "2_Dense", config, {"linear.weight": np.eye(6, dtype=np.float32)})
    wanted = FUNCTIONS[name](VECTORS.astype(np.float64))
    np.testing.assert_allclose(
        _run(tmp_path, read_dense(folder, folder)), wanted, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out_features", [6, 4])
@pytest.mark.parametrize("residual", [True, False])
def test_dense(tmp_path: Path, *, bias: bool, out_features: int, residual: bool) -> None:
    """A layer multiplies, adds its bias, activates, and adds its input if it is residual."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(out_features, 6)).astype(np.float32)
    shift = rng.normal(size=out_features).astype(np.float32)
    passed = rng.normal(size=(out_features, 6)).astype(np.float32)
    tensors = {"linear.weight": weight, "linear.bias": shift, "residual.weight": passed}
    config = {"in_features": 6, "out_features": out_features, "bias": bias}
    folder = _write(tmp_path / "2_Dense", config | {"use_residual": residual}, tensors)
    # The default activation of the reference is Tanh.
    wanted = np.tanh(VECTORS @ weight.T + (shift if bias else 0))
    if residual:
        wanted += VECTORS if out_features == 6 else VECTORS @ passed.T
    np.testing.assert_allclose(
        _run(tmp_path, read_dense(folder, folder)), wanted, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("opset", [13, 17])
def test_layer_norm(tmp_path: Path, opset: int) -> None:
    """A LayerNorm module centres and scales each vector, with old opsets too."""
    rng = np.random.default_rng(3)
    scale, shift = rng.normal(size=(2, 6)).astype(np.float32)
    tensors = {"norm.weight": scale, "norm.bias": shift}
    folder = _write(tmp_path / "2_LayerNorm", {"dimension": 6}, tensors)
    centred = VECTORS - VECTORS.mean(axis=1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * scale + shift
    layer = read_norm(folder, folder)
    np.testing.assert_allclose(_run(tmp_path, layer, opset=opset), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Softmax"},
            "activation_function must be torch.nn's Identity, Tanh",
        ),
        ({"activation_function": "own.Tanh"}, "not 'own.Tanh'"),
        ({"activation_function": "torch.nnx.Tanh"}, "not 'torch.nnx.Tanh'"),
        ({"in_features": None}, "in_features must be a whole number"),
        ({"out_features": 0}, "out_features must be a whole number"),
        ({"bias": "yes"}, "bias must be true or false"),
        ({"in_features": 35}, "the Dense module needs 35 values, but the module before it"),
        ({"module_input_name": "token_embeddings"}, "module_input_name must be sentence_embedding"),
        ({"module_output_name": "other"}, "module_output_name must be sentence_embedding"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The error names the module's file and the key."""
    folder = copy_fixture("gemma-dense", tmp_path)
    path = folder / "2_Dense" / "config.json"
    edit_json(path, **changes)
    with pytest.raises(ModelError) as caught:
        read(resolve(str(folder)))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_layers_must_fit_one_another(tmp_path: Path) -> None:
    """A layer must take as many values as the one before it returns."""
    folder = copy_fixture("gemma-dense", tmp_path)
    edit_json(folder / "2_Dense" / "config.json", out_features=71)
    with pytest.raises(ModelError, match="needs 72 values, but the module before it returns 71"):
        read(resolve(str(folder)))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """Weights with another shape, and missing files, are named."""
    folder = copy_fixture("gemma-dense", tmp_path)
    tensors = load_file(folder / "3_Dense" / "model.safetensors")
    save_file({"linear.weight": tensors["linear.weight"].T.copy()}, folder / "3.tmp")
    (folder / "3.tmp").replace(folder / "3_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=r"linear\.weight has shape \[72, 36\], not \[36, 72\]"):
        Runner.load(folder, tmp_path / "cache")
    (folder / "3_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"3_Dense/model\.safetensors is missing"):
        Runner.load(folder, tmp_path / "cache")
    (folder / "3_Dense" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"3_Dense/config\.json is missing"):
        Runner.load(folder, tmp_path / "cache")


def test_dense_on_a_graph_that_is_built(tmp_path: Path) -> None:
    """The layers may follow a built encoder as well as an export."""
    folder = copy_fixture("albert-dense", tmp_path)
    plain = Runner.load(folder, tmp_path / "cache")
    assert plain.graph.outputs == ("sentence_embedding", "pooled_embedding", "token_vectors")
    tensors = load_file(folder / "5_Dense" / "model.safetensors")
    save_file({k: v * 2 for k, v in tensors.items()}, folder / "5_Dense" / "model.safetensors")
    other = Runner.load(folder, tmp_path / "cache")
    assert other.graph.content_hash != plain.graph.content_hash
    sequences = plain.tokenize(expected("albert-dense")["texts"][:1])
    vectors = [runner.run(sequences, "sentence_embedding") for runner in (plain, other)]
    # LayerNorm cancels a common factor, up to the epsilon beside the variance.
    assert plain.graph.path != other.graph.path
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-3


def test_dropout_needs_no_folder(tmp_path: Path) -> None:
    """The folder of a Dropout module may be missing: the module does nothing."""
    folder = copy_fixture("albert-dense", tmp_path)
    shutil.rmtree(folder / "3_Dropout")
    assert read(resolve(str(folder))).dimensions == 10
