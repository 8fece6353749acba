from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS, TOKEN_VECTORS, TOKEN_WEIGHTS
from embedgrpc.models.kinds import Representation, Similarity
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected
from tests.models.sparse_vectors import assert_same_weights

Load = Callable[[str | Path], Runner]


@pytest.fixture(
    scope="module",
    params=["heads and onnx", "pt heads and onnx", "onnx alone", "safetensors", "pt heads"],
)
def m3(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    """A model with three forms of vectors, from each kind of files."""
    left_out = ["onnx"] if "onnx" not in request.param else []
    if "pt" in request.param:
        left_out += ["sparse_linear.safetensors", "colbert_linear.safetensors"]
    if "alone" in request.param:
        left_out += ["*_linear.*", "model.safetensors"]
    if not left_out:
        return load(FIXTURES / "xlmr-bge-m3")
    return load(copy_fixture("xlmr-bge-m3", tmp_path_factory.mktemp("m3"), leave_out=left_out))


def largest_per_token(
    sequence: TokenSequence, weights: NDArray[np.float32], unweighted: frozenset[int]
) -> dict[int, float]:
    """Return a sparse vector from weights, float32 [tokens]."""
    found: dict[int, float] = {}
    for token, weight in zip(sequence.input_ids.tolist(), weights.tolist(), strict=False):
        if token not in unweighted and weight > 0:
            found[token] = max(weight, found.get(token, 0.0))
    return found


def test_metadata(m3: Runner) -> None:
    """The files of the two heads add two forms of vectors to the dense one."""
    properties = m3.properties
    assert properties.representations == (
        Representation.DENSE,
        Representation.SPARSE,
        Representation.MULTI_VECTOR,
    )
    assert properties.dimensions == properties.multi_vector_dimensions == 32
    assert properties.sparse_dimensions == 1400
    assert properties.unweighted_token_ids == {0, 1, 2, 3}
    assert properties.multi_vector_skip_tokens == 1
    assert properties.similarity is Similarity.COSINE


def test_the_outputs_of_an_export_are_properties(tmp_path: Path) -> None:
    """The forms that only the export has are known, with their origin, before it is built."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=["*_linear.*", "model.safetensors"])
    properties = read(resolve(str(folder)))
    assert properties.sparse_head is properties.multi_vector_head is None
    assert "model.onnx" in properties.origins["representations"]
    assert "model.onnx" in properties.origins["multi_vector_dimensions"]
    assert "vocab_size" in properties.origins["sparse_dimensions"]


def test_token_ids(m3: Runner) -> None:
    """The tokens of a text are those of the reference."""
    reference = expected("xlmr-bge-m3")
    assert [s.input_ids.tolist() for s in m3.tokenize(reference["texts"])] == reference["token_ids"]


@pytest.mark.parametrize(
    ("entry", "output"),
    [("default", "sentence_embedding"), ("normalize_false", "pooled_embedding")],
)
def test_dense(m3: Runner, entry: str, output: str) -> None:
    """The dense vectors are those of the reference, before and after Normalize."""
    reference = expected("xlmr-bge-m3")
    vectors = m3.run(m3.tokenize(reference["texts"]), output)
    np.testing.assert_allclose(
        vectors, reference["outputs"][entry]["vectors"], rtol=0, atol=reference["tolerance"]
    )


def test_sparse(m3: Runner) -> None:
    """The largest weight of each token, except special ones, is that of the reference."""
    reference = expected("xlmr-bge-m3")
    sequences = m3.tokenize(reference["texts"])
    weights = m3.run(sequences, TOKEN_WEIGHTS)
    assert weights.shape == (len(sequences), max(len(s.input_ids) for s in sequences))
    assert weights.min() >= 0
    for sequence, row, theirs in zip(
        sequences, weights, reference["outputs"]["sparse"]["weights"], strict=True
    ):
        ours = largest_per_token(sequence, row, m3.properties.unweighted_token_ids)
        assert_same_weights(ours, theirs, reference["tolerance"])


def test_multi_vector(m3: Runner) -> None:
    """Every token but the first has the vector of the reference, of length 1."""
    reference = expected("xlmr-bge-m3")
    sequences = m3.tokenize(reference["texts"])
    vectors = m3.run(sequences, TOKEN_EMBEDDINGS)
    skip = m3.properties.multi_vector_skip_tokens
    for sequence, rows, theirs in zip(
        sequences, vectors, reference["outputs"]["colbert"]["vectors"], strict=True
    ):
        ours = rows[skip : len(sequence.input_ids)]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=reference["tolerance"])
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_outputs_come_from_one_pass(m3: Runner) -> None:
    """One graph returns all forms at once."""
    assert set(m3.graph.outputs) == {
        "sentence_embedding",
        "pooled_embedding",
        TOKEN_WEIGHTS,
        TOKEN_EMBEDDINGS,
        TOKEN_VECTORS,
    }


def _edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def _hidden_alone(model: onnx.ModelProto) -> None:
    """Leave the token vectors as the only output, as most exports do."""
    hidden = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    model.graph.node.append(helper.make_node("Identity", hidden.output, ["last_hidden_state"]))
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(
            "last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 32]
        )
    )


def _pooled_too(model: onnx.ModelProto) -> None:
    """Return pooled and token vectors, as the authors' own export does."""
    hidden = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    del model.graph.output[1:]
    for node in model.graph.node:
        node.output[:] = ["sentence_embedding" if o == "dense_vecs" else o for o in node.output]
    model.graph.output[0].name = "sentence_embedding"
    model.graph.node.append(helper.make_node("Identity", hidden.output, ["token_embeddings"]))
    model.graph.output.append(
        helper.make_tensor_value_info(
            "token_embeddings", TensorProto.FLOAT, ["batch", "tokens", 32]
        )
    )


def _in_half_precision(model: onnx.ModelProto) -> None:
    for output in model.graph.output:
        name = output.name
        for node in model.graph.node:
            node.output[:] = [f"{name}_full" if o == name else o for o in node.output]
        cast = helper.make_node("Cast", [f"{name}_full"], [name], to=TensorProto.FLOAT16)
        model.graph.node.append(cast)
        output.type.tensor_type.elem_type = TensorProto.FLOAT16


def _named_otherwise(model: onnx.ModelProto) -> None:
    names = {
        "dense_vecs": "dense_embeddings",
        "sparse_vecs": "sparse_weights",
        "colbert_vecs": "colbert_vectors",
    }
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for output in model.graph.output:
        output.name = names[output.name]


def _without_vectors(model: onnx.ModelProto) -> None:
    del model.graph.output[2]


@pytest.mark.parametrize(
    "edit", [_hidden_alone, _pooled_too, _in_half_precision, _named_otherwise, _without_vectors]
)
def test_other_exports(tmp_path: Path, load: Load, edit: Callable[[onnx.ModelProto], None]) -> None:
    """The vectors do not depend on the names and the choice of an export's outputs."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path)
    _edit_graph(folder, edit)
    other, plain = load(folder), load(FIXTURES / "xlmr-bge-m3")
    assert other.graph.outputs == plain.graph.outputs
    sequences = plain.tokenize(expected("xlmr-bge-m3")["texts"][:3])
    real = len(sequences[0].input_ids)
    for output in plain.graph.outputs:
        np.testing.assert_array_equal(
            other.run(sequences[:1], output)[:, :real], plain.run(sequences[:1], output)[:, :real]
        )


def _all_rows(model: onnx.ModelProto) -> None:
    """Return a vector of the first token too."""
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in {
            "/Constant_1_output_0",
            "/Constant_5_output_0",
        }:
            assert numpy_helper.to_array(node.attribute[0].t).tolist() == [1]
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([0], dtype=np.int64)))


def test_an_export_may_have_a_vector_for_every_token(tmp_path: Path, load: Load) -> None:
    """An export may also have a vector of the first token; the others are the same."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=["*_linear.*", "model.safetensors"])
    _edit_graph(folder, _all_rows)
    other, plain = load(folder), load(FIXTURES / "xlmr-bge-m3")
    sequences = plain.tokenize(expected("xlmr-bge-m3")["texts"][:1])
    np.testing.assert_allclose(
        other.run(sequences, TOKEN_EMBEDDINGS)[:, 1:],
        plain.run(sequences, TOKEN_EMBEDDINGS)[:, 1:],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("sparse_vecs", r"token_weights .* \[2, 14\], not \[2, 7\]"),
        ("colbert_vecs", r"token_embeddings .* \[2, 7, 64\], not \[2, 7, 32\]"),
    ],
)
def test_an_export_of_other_sizes_is_refused(tmp_path: Path, output: str, message: str) -> None:
    """An export's own token outputs must have one weight, or a vector of one size, per token."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["once" if o == output else o for o in node.output]
        twice = helper.make_node("Concat", ["once", "once"], [output], axis=2)
        model.graph.node.append(twice)
        (value,) = (one for one in model.graph.output if one.name == output)
        value.type.tensor_type.shape.dim[2].Clear()

    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=["*_linear.*", "model.safetensors"])
    _edit_graph(folder, edit)
    with pytest.raises(ModelError, match=message):
        Runner.load(folder, tmp_path / "cache")


def test_a_configured_output_is_the_only_one(tmp_path: Path) -> None:
    """If the configuration names an output, the export's other forms are not offered."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=["*_linear.*"])
    properties = read(resolve(str(folder)), ModelOverrides(output="dense_vecs"))
    assert properties.representations == (Representation.DENSE,)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("sparse_linear", "output 'sparse_vecs' is not what sparse_linear.safetensors gives"),
        ("colbert_linear", "output 'colbert_vecs' is not what colbert_linear.safetensors gives"),
    ],
)
def test_heads_of_another_model_are_refused(tmp_path: Path, file: str, message: str) -> None:
    """An export whose heads differ from the files beside it is refused."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path)
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    save_file({name: values[..., ::-1].copy() for name, values in tensors.items()}, path)
    with pytest.raises(ModelError) as caught:
        Runner.load(folder, tmp_path / "cache")
    assert str(caught.value).startswith(f"{folder / 'onnx' / 'model.onnx'}: {message}")


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    """An export that pools in another way than modules.json says is refused."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path)
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=False)
    with pytest.raises(ModelError, match=r"'dense_vecs' is not what modules\.json says"):
        Runner.load(folder, tmp_path / "cache")


def test_outputs_without_common_token_vectors_are_refused(tmp_path: Path) -> None:
    """An export whose outputs depend on no common value cannot be used."""

    def edit(model: onnx.ModelProto) -> None:
        zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [1, 32], [0.0] * 32)
        model.graph.initializer.append(zeros)
        for node in model.graph.node:
            node.output[:] = ["unused" if o == "dense_vecs" else o for o in node.output]
        model.graph.node.append(helper.make_node("Identity", ["zeros"], ["dense_vecs"]))

    folder = copy_fixture("xlmr-bge-m3", tmp_path)
    _edit_graph(folder, edit)
    with pytest.raises(ModelError, match="are not made from the same token vectors"):
        Runner.load(folder, tmp_path / "cache")


def test_a_pooled_export_cannot_feed_the_heads(tmp_path: Path) -> None:
    """An export without token vectors is refused, with the name of the head that needs them."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["sentence_embedding" if o == "dense_vecs" else o for o in node.output]
        del model.graph.output[1:]
        model.graph.output[0].name = "sentence_embedding"

    folder = copy_fixture("xlmr-bge-m3", tmp_path)
    _edit_graph(folder, edit)
    with pytest.raises(
        ModelError, match=r"no token vectors, which sparse_linear\.safetensors needs"
    ):
        Runner.load(folder, tmp_path / "cache")


@pytest.mark.parametrize("left_out", ["sparse_linear.*", "colbert_linear.*"])
def test_one_head_alone(tmp_path: Path, load: Load, left_out: str) -> None:
    """A model may have only one of the two heads."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=[left_out])
    runner = load(folder)
    sparse = "colbert" in left_out
    assert (Representation.SPARSE in runner.properties.representations) == sparse
    assert (Representation.MULTI_VECTOR in runner.properties.representations) != sparse
    assert (TOKEN_WEIGHTS in runner.graph.outputs) == sparse
    assert (TOKEN_EMBEDDINGS in runner.graph.outputs) != sparse
    assert bool(runner.properties.sparse_dimensions) == sparse
    assert bool(runner.properties.multi_vector_dimensions) != sparse


def test_the_content_hash_covers_the_heads(tmp_path: Path, load: Load) -> None:
    """Models with other heads have another content hash."""
    folder = copy_fixture("xlmr-bge-m3", tmp_path, leave_out=["onnx"])
    original = load(folder).graph.content_hash
    path = folder / "colbert_linear.safetensors"
    save_file({name: values * 2 for name, values in load_file(path).items()}, path)
    changed = Runner.load(folder, tmp_path / "cache").graph.content_hash
    path.unlink()
    (folder / "colbert_linear.pt").unlink()
    without = Runner.load(folder, tmp_path / "cache").graph.content_hash
    assert len({original, changed, without}) == 3
