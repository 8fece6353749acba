import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from embedgrpc.models.errors import ModelError
from embedgrpc.models.graphs.outputs import VOCABULARY_WEIGHTS
from embedgrpc.models.kinds import Representation, Similarity
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected
from tests.models.sparse_vectors import assert_reference, assert_same_weights

Load = Callable[[str | Path], Runner]


@pytest.fixture(scope="module")
def splade(load: Load) -> Runner:
    """A model with sparse vectors only."""
    return load(FIXTURES / "splade-bert")


def test_metadata(splade: Runner) -> None:
    """A sparse model has no dense vectors, and its similarity is the dot product."""
    metadata = splade.properties
    assert metadata.representations == (Representation.SPARSE,)
    assert metadata.dimensions == metadata.multi_vector_dimensions == 0
    assert metadata.sparse_dimensions == 1250
    assert metadata.max_tokens == 80
    assert metadata.similarity is Similarity.DOT
    assert metadata.unweighted_token_ids == frozenset()
    assert splade.graph.outputs == (VOCABULARY_WEIGHTS,)


def test_token_ids(splade: Runner) -> None:
    """The tokens of a text are those of the reference."""
    reference = expected("splade-bert")
    sequences = splade.tokenize(reference["texts"])
    assert [s.input_ids.tolist() for s in sequences] == reference["token_ids"]


def test_weights(splade: Runner) -> None:
    """Each vocabulary entry has the weight of the reference, alone and in a padded batch."""
    reference = expected("splade-bert")
    sequences = splade.tokenize(reference["texts"])
    together = splade.run(sequences, VOCABULARY_WEIGHTS)
    assert together.shape == (len(sequences), 1250)
    for row, sequence, theirs in zip(
        together, sequences, reference["outputs"]["default"]["weights"], strict=True
    ):
        alone = splade.run([sequence], VOCABULARY_WEIGHTS)[0]
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-5)
        ours: dict[int, Any] = dict(enumerate(row.tolist()))
        assert_same_weights(ours, theirs, reference["tolerance"])


def test_similarity_defaults_to_dot(tmp_path: Path, load: Load) -> None:
    """Without a configured similarity, sparse vectors use the dot product, as in the reference."""
    folder = copy_fixture("splade-bert", tmp_path)
    edit_json(folder / "config_sentence_transformers.json", similarity_fn_name=None)
    assert load(folder).properties.similarity is Similarity.DOT


def test_the_newer_metadata(tmp_path: Path) -> None:
    """The modules and keys of newer releases are read."""
    folder = copy_fixture("splade-bert", tmp_path)
    module = "sentence_transformers.{}"
    entries = [
        {"idx": 0, "name": "0", "path": "", "type": module.format("base.modules.Transformer")},
        {
            "idx": 1,
            "name": "1",
            "path": "1_SpladePooling",
            "type": module.format("sparse_encoder.modules.splade_pooling.SpladePooling"),
        },
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    text = {"method": "forward", "method_output_name": "logits"}
    (folder / "sentence_bert_config.json").write_text(
        json.dumps(
            {
                "transformer_task": "fill-mask",
                "modality_config": {"text": text},
                "module_output_name": "token_embeddings",
            }
        )
    )
    edit_json(
        folder / "1_SpladePooling" / "config.json",
        word_embedding_dimension=None,
        embedding_dimension=1250,
    )
    edit_json(folder / "tokenizer_config.json", model_max_length=80)
    runner = Runner.load(folder, tmp_path / "cache")
    assert runner.properties.max_tokens == 80
    assert_reference(runner)


def _logits_of(runner: Runner) -> tuple[onnx.ModelProto, str]:
    """Return the graph with its weights inside, and the name of its logits."""
    model = onnx.load(runner.graph.path)
    largest = next(n for n in reversed(model.graph.node) if n.op_type == "ReduceMax")
    masked = next(n for n in model.graph.node if largest.input[0] in n.output)
    return model, masked.input[0]


def _export(runner: Runner, folder: Path, name: str, *, vocabulary: int | str = 1250) -> None:
    """Write an ONNX export of the masked-language model."""
    model, logits = _logits_of(runner)
    model.graph.node.append(helper.make_node("Identity", [logits], [name]))
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", vocabulary])
    )
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model.onnx")


@pytest.mark.parametrize(("name", "vocabulary"), [("logits", 1250), ("output", "vocabulary")])
def test_an_export_gives_the_same(
    tmp_path: Path, splade: Runner, name: str, vocabulary: int | str
) -> None:
    """The logits of an exported masked-language model are pooled here."""
    folder = copy_fixture("splade-bert", tmp_path)
    _export(splade, folder, name, vocabulary=vocabulary)
    (folder / "model.safetensors").unlink()
    runner = Runner.load(folder, tmp_path / "cache")
    assert runner.graph.outputs == (VOCABULARY_WEIGHTS,)
    assert_reference(runner)


def test_an_export_that_hides_its_size_is_run(tmp_path: Path, splade: Runner) -> None:
    """An unknown number of logits per token is checked by a run."""
    folder = copy_fixture("splade-bert", tmp_path)
    _export(splade, folder, "output", vocabulary="values")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    kept = helper.make_tensor("kept", TensorProto.INT64, [32], list(range(32)))
    model.graph.initializer.append(kept)
    source = next(node for node in model.graph.node if "output" in node.output)
    cut = helper.make_node("Gather", [source.input[0], "kept"], ["output"], axis=2)
    source.output[:] = ["whole"]
    model.graph.node.append(cut)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"model\.onnx: the graph gives 32 values per token, not"):
        Runner.load(folder, tmp_path / "cache")


def test_an_export_of_another_vocabulary_is_refused(tmp_path: Path, splade: Runner) -> None:
    """An export without logits is refused, with the names of its outputs."""
    folder = copy_fixture("splade-bert", tmp_path)
    _export(splade, folder, "last_hidden_state", vocabulary=32)
    with pytest.raises(
        ModelError, match=r"outputs are last_hidden_state; one must hold the logits"
    ):
        Runner.load(folder, tmp_path / "cache")


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_poolings_and_activations(
    tmp_path: Path, splade: Runner, strategy: str, activation: str
) -> None:
    """Weights are pooled and dampened as the module's configuration says, without the padding."""
    folder = copy_fixture("splade-bert", tmp_path)
    edit_json(
        folder / "1_SpladePooling" / "config.json",
        pooling_strategy=strategy,
        activation_function=activation,
    )
    runner = Runner.load(folder, tmp_path / "cache")
    _export(splade, copied := copy_fixture("splade-bert", tmp_path / "x"), "logits")
    model = onnx.load(copied / "onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    texts = expected("splade-bert")["texts"][:4]
    sequences = runner.tokenize(texts)
    ours = runner.run(sequences, VOCABULARY_WEIGHTS)
    for row, sequence in zip(ours, sequences, strict=True):
        ids = sequence.input_ids[None]
        feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        (logits,) = session.run(["logits"], feeds)
        weights = np.log1p(np.maximum(logits[0], 0))
        weights = np.log1p(weights) if activation == "log1p_relu" else weights
        wanted = weights.max(axis=0) if strategy == "max" else weights.sum(axis=0)
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5)
