"""A model with `include_prompt: false`: the tokens of a prompt are not pooled."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.remote.inputs import plan_inputs
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

Load = Callable[[str | Path], Runner]
NAME = "bert-prompt-left-out"


def test_texts_with_several_prompts_share_a_batch(load: Load) -> None:
    """In one batch, each text has the vector of the reference for its prompt."""
    runner, reference = load(FIXTURES / NAME), expected(NAME)
    sequences, vectors = [], []
    for asked in reference["outputs"].values():
        prompt = asked.get("prompt_applied", "")
        count = runner.tokenizer.count_prompt_tokens(prompt, runner.properties.max_tokens)
        tokenized = runner.tokenize([prompt + text for text in reference["texts"]])
        sequences += [replace(one, prompt_tokens=count) for one in tokenized]
        vectors += asked["vectors"]
    batch = pad(sequences, pad_token_id=0, left=False, outputs=("sentence_embedding",))
    found = runner.backend.run(batch)["sentence_embedding"]
    np.testing.assert_allclose(found, vectors, rtol=0, atol=reference["tolerance"])


def test_the_length_of_a_prompt(load: Load) -> None:
    """The first special token belongs to the prompt, the last does not; the limit holds."""
    tokenizer = load(FIXTURES / NAME).tokenizer
    assert tokenizer.count_prompt_tokens("", 32) == 0
    assert tokenizer.count_prompt_tokens("a b", 32) == 3
    assert tokenizer.count_prompt_tokens("a " * 99, 32) == 31


def test_the_fingerprint_says_so(tmp_path: Path) -> None:
    """A model that pools its prompts is another model."""
    folder = copy_fixture(NAME, tmp_path)
    files = resolve(str(folder))
    left_out = prepare(files, read(files), cache_dir=tmp_path / "cache")
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=True)
    pooled = prepare(files, read(files), cache_dir=tmp_path / "cache")
    assert "prompt_tokens" in left_out.inputs
    assert "prompt_tokens" not in pooled.inputs
    assert left_out.content_hash != pooled.content_hash


def test_an_export_keeps_the_prompt_out(load: Load, tmp_path: Path) -> None:
    """An export with token vectors is pooled like the graph that is built."""
    folder = copy_fixture("bert-cls", tmp_path)
    pooling = folder / "1_Pooling" / "config.json"
    edit_json(
        pooling,
        include_prompt=False,
        pooling_mode_cls_token=False,
        pooling_mode_mean_tokens=True,
    )
    outputs = []
    for leave_out in ((), ("onnx",)):
        copy = copy_fixture("bert-cls", tmp_path / str(len(leave_out)), leave_out=leave_out)
        (copy / "1_Pooling" / "config.json").write_bytes(pooling.read_bytes())
        runner = load(copy)
        assert "prompt_tokens" in runner.graph.inputs
        sequences = [replace(runner.tokenize(["the river flows"])[0], prompt_tokens=2)]
        batch = pad(sequences, pad_token_id=0, left=False, outputs=("sentence_embedding",))
        outputs.append(runner.backend.run(batch)["sentence_embedding"])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5)


def test_an_export_without_token_vectors_is_refused(load: Load, tmp_path: Path) -> None:
    """Nothing can be left out of a vector that the export has pooled."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    (hidden,) = [one.name for one in model.graph.output][:1]
    first = onnx.helper.make_node("Gather", [hidden, "zero"], ["sentence_embedding"], axis=1)
    model.graph.node.append(first)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("sentence_embedding", 1, ["batch", None])
    )
    onnx.save(model, path)
    with pytest.raises(ModelError, match="include_prompt"):
        load(folder)


def test_triton_is_refused() -> None:
    """A request to Triton cannot say which tokens belong to a prompt."""
    properties = read(resolve(str(FIXTURES / NAME)))
    with pytest.raises(ModelError, match="include_prompt"):
        plan_inputs(["input_ids", "attention_mask"], properties, model="m")
