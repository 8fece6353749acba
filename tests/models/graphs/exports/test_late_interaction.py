"""Exports of models of late interaction, which end before or after the Dense modules."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.models.errors import ModelError
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS
from embedgrpc.models.kinds import TextRole
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, expected

NAME = "multi-vector-roberta"
_HIDDEN, _PROJECTED = 32, 16


def _export(tmp_path: Path, output: str, size: int) -> Path:
    """Return the fixture with an export that ends before or after the projections."""
    folder = copy_fixture(NAME, tmp_path)
    built = Runner.load(FIXTURES / NAME, tmp_path / "built")
    files = resolve(str(folder))
    graph = prepare(files, built.properties, cache_dir=tmp_path / "built")
    shutil.copytree(graph.path.parent, folder / "onnx")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    source = TOKEN_EMBEDDINGS
    if size == _HIDDEN:
        source = next(node for node in model.graph.node if "dense" in node.name).input[0]
        del model.graph.output[:]
    else:
        value = model.graph.output.pop()
        assert value.name == TOKEN_EMBEDDINGS
    model.graph.node.append(helper.make_node("Identity", [source], [output]))
    shape: list[str | int | None] = ["batch", "tokens", size]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    path.write_bytes(model.SerializeToString())
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("size", [_HIDDEN, _PROJECTED])
def test_vectors_of_an_export(tmp_path: Path, size: int) -> None:
    """Both kinds of export give the vectors of the reference."""
    runner = Runner.load(_export(tmp_path, "last_hidden_state", size), tmp_path / "cache")
    reference = expected(NAME)
    late = runner.properties.late_interaction
    assert late is not None
    for role in TextRole:
        asked = reference["outputs"][role]
        texts = [runner.properties.prompts[role] + text for text in asked["texts"]]
        sequences = [
            runner.tokenizer.build_sequence(
                ids,
                max_tokens=late.max_tokens[role],
                truncation=runner.properties.truncation,
                role=role,
            )
            for ids in runner.tokenizer.encode(texts)
        ]
        batch = pad(sequences, pad_token_id=1, left=False, outputs=(TOKEN_EMBEDDINGS,))
        rows = runner.backend.run(batch)[TOKEN_EMBEDDINGS]
        for sequence, found, vectors in zip(sequences, rows, asked["vectors"], strict=True):
            kept = np.ones(len(sequence.input_ids), bool)
            kept = kept if sequence.compared is None else sequence.compared
            ours = found[: len(kept)][kept]
            np.testing.assert_allclose(ours, vectors, rtol=0, atol=reference["tolerance"])


def test_an_export_of_another_size_is_refused(tmp_path: Path) -> None:
    """The error names the sizes that the model's files lead to."""
    folder = _export(tmp_path, "last_hidden_state", 24)
    with pytest.raises(ModelError, match="32 or 16 values"):
        Runner.load(folder, tmp_path / "cache")
