import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.machine.int8_products import saturates
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs import build, graph
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.graphs.weight_types.int8 import convert_to_int8
from embedgrpc.models.graphs.weight_types.matmuls import find_tables
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import find_weight_file
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import DEFAULT_MODEL, FIXTURES, Runner, copy_fixture, expected

INT8 = ModelOverrides(weight_type=WeightType.INT8)
# The names of quantised weights.
INTEGERS = re.compile("_u?int8$")


def _prepare(source: str | Path, cache_dir: Path, overrides: ModelOverrides = INT8) -> Graph:
    files = resolve(str(source))
    return prepare(files, read(files, overrides), cache_dir=cache_dir)


def _load(source: str | Path, cache_dir: Path) -> Runner:
    files = resolve(str(source))
    properties = read(files, INT8)
    graph = prepare(files, properties, cache_dir=cache_dir)
    backend = OnnxBackend(graph.path, device="cpu")
    return Runner(properties, Tokenizer.load(properties), graph, backend)


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: NDArray[np.float32] = (one * other).sum(axis=1) / lengths
    return cosines


@pytest.fixture(params=sorted({True, saturates()}), ids=lambda one: "uint8" if one else "int8")
def unsigned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Build graphs in each of the two ways that are exact on this CPU."""
    for module in (build, graph):
        monkeypatch.setattr(module, "saturates", lambda: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("unsigned")
def test_the_default_model_stays_near(cache_dir: Path) -> None:
    """Int8 vectors of the default model are almost those of the reference."""
    runner = _load(DEFAULT_MODEL, cache_dir)
    wanted = np.load(FIXTURES / "all-MiniLM-L6-v2" / "expected.npz")["vectors"]
    sequences = runner.tokenize(expected("all-MiniLM-L6-v2")["texts"])
    alone = np.concatenate([runner.run([one], "sentence_embedding") for one in sequences])
    cosines = _cosines(alone, wanted)
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.995
    # It differs from a float32 graph.
    assert cosines.mean() < 0.9999
    assert runner.graph.weight_type == "int8"


@pytest.mark.parametrize(
    "name", ["bert-mean", "bert-cls", "mpnet-mean", "gemma-dense", "qwen3-last", "albert-dense"]
)
def test_every_graph_can_be_quantised(cache_dir: Path, name: str) -> None:
    """Built and exported graphs become int8, and their vectors stay close to the reference."""
    runner = _load(FIXTURES / name, cache_dir)
    reference = expected(name)
    model = onnx.load(runner.graph.path)
    onnx.checker.check_model(model)
    products = Counter(node.op_type for node in model.graph.node)["MatMulIntegerToFloat"]
    assert products >= 12
    sequences = runner.tokenize(reference["texts"])
    vectors = np.concatenate([runner.run([one], "sentence_embedding") for one in sequences])
    wanted = np.array(reference["outputs"]["default"]["vectors"], dtype=np.float32)
    # Tiny random models are less robust than real ones.
    assert np.median(_cosines(vectors, wanted)) > 0.99


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (DEFAULT_MODEL, "sentence_embedding"),
        ("bert-mean", "sentence_embedding"),
        ("gemma-dense", "sentence_embedding"),
        ("qwen3-last", "sentence_embedding"),
        ("albert-dense", "sentence_embedding"),
        ("modernbert-cls", "sentence_embedding"),
        ("xlmr-bge-m3", "sentence_embedding"),
        ("splade-bert", "vocabulary_weights"),
        ("cross-bert", "logits"),
    ],
)
def test_a_text_has_one_result(cache_dir: Path, source: str, output: str) -> None:
    """A text has the same result alone, in a batch of its length, and with much padding."""
    runner = _load(source if source == DEFAULT_MODEL else FIXTURES / source, cache_dir)
    texts = [" ".join(["flow over a wing"] * count) for count in (1, 1, 9, 2, 5, 1, 30)]
    texts += ["x", "Boundary layers!", "the heat of a blunt body at Mach 5"]
    sequences = runner.tokenize(texts)
    alone = np.concatenate([runner.run([one], output) for one in sequences])
    size = max(1.0, float(np.abs(alone).max()))
    for places in (slice(None), slice(0, 2), slice(5, 7)):
        again = runner.run(sequences[places], output)
        np.testing.assert_allclose(again, alone[places], rtol=0, atol=1e-6 * size)


def test_a_cross_encoder(tmp_path: Path) -> None:
    """Scores stay close to the reference, and the classifier is not quantised."""
    runner = _load(copy_fixture("cross-bert", tmp_path, leave_out=["onnx"]), tmp_path / "cache")
    reference = expected("cross-bert")
    pairs = runner.tokenize_pairs(reference["pairs"])
    logits = np.concatenate([runner.run([pair], "logits") for pair in pairs])[:, 0]
    wanted = np.array(reference["outputs"]["logits"]["scores"])
    assert np.corrcoef(logits, wanted)[0, 1] > 0.999
    model = onnx.load(runner.graph.path)
    floats = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    # The two of attention in each of two layers, and the two of the head.
    assert len(floats) == 6


@pytest.mark.parametrize("leave_out", [[], ["onnx"]])
def test_heads_stay_exact(tmp_path: Path, leave_out: list[str]) -> None:
    """Matrices with few columns stay float32, and so do the heads that are built."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=leave_out)
    graph = _prepare(folder, tmp_path / "cache")
    model = onnx.load(graph.path, load_external_data=False)
    columns = [tensor.dims[1] for tensor in model.graph.initializer if INTEGERS.search(tensor.name)]
    assert len(columns) >= 12
    assert min(columns) >= 8
    heads = [node for node in model.graph.node if node.name.startswith("exact_head")]
    assert len(heads) == 2
    assert all(node.op_type == "MatMul" for node in heads)


def test_shared_inputs_are_quantised_once(cache_dir: Path) -> None:
    """Query, key and value share a quantised activation: 4 quantisations for 6 products."""
    model = onnx.load(_prepare(FIXTURES / "bert-mean", cache_dir).path)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulIntegerToFloat"] == 2 * 6
    assert counts["QuantizeLinear"] == 2 * 4
    assert counts["MatMul"] == 2 * 2 + 1  # attention, and the mean


def test_weights_are_int8_per_column(cache_dir: Path) -> None:
    """Every column has its own scale, and the rounding error is half a step at most."""
    graph = _prepare(FIXTURES / "bert-mean", cache_dir)
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor, str(graph.path.parent))
        for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer
    }
    quantized = [name for name in tensors if INTEGERS.search(name)]
    assert len(quantized) == 12
    for name in quantized:
        scale = tensors[INTEGERS.sub("_scale", name)]
        assert tensors[name].dtype == (np.uint8 if saturates() else np.int8)
        assert scale.shape == tensors[name].shape[1:]
        # Every column uses its whole range.
        zero = 128 if saturates() else 0
        assert (np.abs(tensors[name].astype(int) - zero).max(axis=0) == 127).all()


def test_both_forms_have_the_same_integers(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights as uint8 are those as int8, plus 128; each form has its own cache entry."""
    found = {}
    for unsigned in (False, True):
        for module in (build, graph):
            monkeypatch.setattr(module, "saturates", lambda unsigned=unsigned: unsigned)
        found[unsigned] = _prepare(FIXTURES / "bert-mean", cache_dir)
    signed, shifted = (
        {
            one.name: onnx.numpy_helper.to_array(one)
            for one in onnx.load(made.path).graph.initializer
        }
        for made in (found[False], found[True])
    )
    assert found[False].path != found[True].path
    assert found[False].content_hash == found[True].content_hash
    names = [name for name in signed if name.endswith("_int8")]
    assert len(names) == 12
    for name in names:
        other = shifted[INTEGERS.sub("_uint8", name)]
        assert np.array_equal(signed[name].astype(int) + 128, other)


def test_token_vectors_are_float16(cache_dir: Path) -> None:
    """The table of token vectors takes half the memory; smaller tables stay as they are."""
    graph = _prepare(FIXTURES / "bert-mean", cache_dir)
    model = onnx.load(graph.path)
    tensors = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    (table,) = [values for values in tensors.values() if values.dtype == np.float16]
    stored = load_file(FIXTURES / "bert-mean" / "model.safetensors")
    (wanted,) = [values for key, values in stored.items() if key.endswith("word_embeddings.weight")]
    assert np.array_equal(table, wanted.astype(np.float16))
    assert any("position_embeddings" in name for name in tensors)


@pytest.mark.parametrize("largest", [1.0, 65504.0, 70000.0])
def test_a_table_with_large_numbers_keeps_them(tmp_path: Path, largest: float) -> None:
    """A number beyond the range of float16 leaves the table at float32."""
    folder = copy_fixture("bert-mean", tmp_path, leave_out=["onnx"])
    weights = load_file(folder / "model.safetensors")
    (name,) = [key for key in weights if key.endswith("word_embeddings.weight")]
    weights[name][-1, 0] = -largest
    save_file(weights, folder / "model.safetensors")
    model = onnx.load(_prepare(folder, tmp_path / "cache").path)
    kinds = {one.data_type for one in model.graph.initializer if name in one.name}
    is_half = largest <= float(np.finfo(np.float16).max)
    assert kinds == {onnx.TensorProto.FLOAT16 if is_half else onnx.TensorProto.FLOAT}


def test_tables_with_another_use_are_left() -> None:
    """Only rows may be read: not the weights of a product, and not other axes."""
    table = np.zeros((2000, 16), np.float32)
    names = ("alone", "tied", "columns", "short", "unused")
    tensors = [onnx.numpy_helper.from_array(table, name) for name in names if name != "short"]
    tensors.append(onnx.numpy_helper.from_array(table[:100], "short"))
    nodes = [
        onnx.helper.make_node("Gather", ["alone", "ids"], ["one"]),
        onnx.helper.make_node("Gather", ["tied", "ids"], ["two"]),
        onnx.helper.make_node("Transpose", ["tied"], ["turned"]),
        onnx.helper.make_node("Gather", ["columns", "ids"], ["three"], axis=1),
        onnx.helper.make_node("Gather", ["short", "ids"], ["four"]),
    ]
    graph = onnx.helper.make_graph(nodes, "tables", [], [], tensors)
    assert find_tables(graph) == {"alone"}


def test_it_has_an_entry_and_a_hash_of_its_own(tmp_path: Path) -> None:
    """An int8 graph has its own content hash and its own cache entry."""
    plain = _prepare(FIXTURES / "bert-mean", tmp_path, ModelOverrides())
    graph = _prepare(FIXTURES / "bert-mean", tmp_path)
    assert graph.content_hash != plain.content_hash
    assert graph.path != plain.path
    assert graph.weight_bytes < plain.weight_bytes
    assert (plain.weight_type, graph.weight_type) == ("float32", "int8")
    assert sorted(path.name for path in graph.path.parent.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "model.weights",
    ]
    assert _prepare(FIXTURES / "bert-mean", tmp_path) == graph


def test_a_hit_does_not_load_what_quantises(cache_dir: Path) -> None:
    """A start from the cache does not import the onnx package."""
    _prepare(FIXTURES / "bert-mean", cache_dir)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from embedgrpc.models import kinds\n"
        "from embedgrpc.models.folder import properties, overrides\n"
        "from embedgrpc.models.graphs import graph\n"
        "from embedgrpc.models.sources import source\n"
        f"files = source.resolve({str(FIXTURES / 'bert-mean')!r})\n"
        "int8 = overrides.ModelOverrides(weight_type=kinds.WeightType.INT8)\n"
        "told = properties.read(files, int8)\n"
        f"print(graph.prepare(files, told, cache_dir=Path({str(cache_dir)!r})).weight_type)\n"
        "print('onnx' in sys.modules, 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["int8", "False", "False"]


def test_a_quantised_graph_cannot_be_quantised(tmp_path: Path) -> None:
    """A graph without float32 weights is refused."""
    graph = _prepare(FIXTURES / "bert-mean", tmp_path / "cache")
    (tmp_path / "again").mkdir()
    properties = read(resolve(str(FIXTURES / "bert-mean")), INT8)
    weight_file = find_weight_file(properties.transformer_folder, properties.folder, file="")
    with pytest.raises(ModelError, match="no float32 weights to convert: leave weight_type at"):
        convert_to_int8(graph.path, tmp_path / "again", weight_file, properties, unsigned=False)


def test_a_quantised_export_must_be_configured(tmp_path: Path) -> None:
    """A quantised export is refused unless the configuration names its file."""
    graph = _prepare(FIXTURES / "bert-mean", tmp_path / "cache")
    folder = copy_fixture("bert-mean", tmp_path)
    model = onnx.load(graph.path)
    # As in an export: token vectors, and no head.
    last = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    del model.graph.output[:]
    model.graph.node.append(onnx.helper.make_node("Identity", last.output, ["last_hidden_state"]))
    sizes: list[str | int | None] = ["batch", "tokens", 32]
    model.graph.output.append(onnx.helper.make_tensor_value_info("last_hidden_state", 1, sizes))
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model.onnx")
    with pytest.raises(ModelError, match=r"is quantised \(MatMulIntegerToFloat\): set file"):
        _prepare(folder, tmp_path / "cache", ModelOverrides())
    asked = replace(ModelOverrides(), file="onnx/model.onnx")
    assert _prepare(folder, tmp_path / "cache", asked).outputs == graph.outputs
