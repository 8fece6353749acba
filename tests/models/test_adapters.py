"""LoRA adapters are merged into the weights of their base model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

BASE, ADAPTER = "qwen3-last", "lora-qwen3"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.layers.0.mlp.down_proj"


def _beside(tmp_path: Path) -> Path:
    """Put the weights of the base model into the adapter's folder."""
    folder = copy_fixture(ADAPTER, tmp_path)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / BASE / name, folder / name)
    return folder


def _apart(tmp_path: Path) -> tuple[Path, Path]:
    """Return a base model and a folder with nothing but an adapter, as peft writes it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(FIXTURES / ADAPTER / name, adapter / name)
    return copy_fixture(BASE, tmp_path, leave_out=["onnx"]), adapter


def _prepare(folder: Path, cache_dir: Path, **overrides: Any) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files, ModelOverrides(**overrides)), cache_dir=cache_dir)


def _check(runner: Runner) -> None:
    reference = expected(ADAPTER)
    sequences = runner.tokenize(reference["texts"])
    assert [s.input_ids.tolist() for s in sequences] == reference["token_ids"]
    for entry, output in (
        ("default", "sentence_embedding"),
        ("normalize_false", "pooled_embedding"),
    ):
        np.testing.assert_allclose(
            runner.run(sequences, output),
            reference["outputs"][entry]["vectors"],
            rtol=0,
            atol=reference["tolerance"],
        )


def test_an_adapter_beside_its_base_model(tmp_path: Path) -> None:
    """A folder of sentence-transformers with the base model's weights equals the reference."""
    _check(Runner.load(_beside(tmp_path), tmp_path / "cache"))


def test_an_adapter_that_the_configuration_names(tmp_path: Path) -> None:
    """A base model with the adapter of another folder equals the reference."""
    base, adapter = _apart(tmp_path)
    files = resolve(str(base))
    properties = read(files, ModelOverrides(adapter=str(adapter)))
    graph = prepare(files, properties, cache_dir=tmp_path / "cache")
    backend = OnnxBackend(graph.path, device="cpu")
    _check(Runner(properties, Tokenizer.load(properties), graph, backend))
    assert f"{CONFIG}: " in " ".join(properties.keys)


def test_the_fingerprint_contains_the_adapter(tmp_path: Path) -> None:
    """Another strength, other matrices and no adapter are other embedding spaces."""
    base, adapter = _apart(tmp_path)
    cache = tmp_path / "cache"
    hashes = [_prepare(base, cache).content_hash]
    hashes.append(_prepare(base, cache, adapter=str(adapter)).content_hash)
    edit_json(adapter / CONFIG, lora_alpha=7)
    hashes.append(_prepare(base, cache, adapter=str(adapter)).content_hash)
    tensors = load_file(adapter / WEIGHTS)
    tensors[f"{LAYER}.lora_A.weight"] *= 2
    save_file(tensors, adapter / WEIGHTS)
    hashes.append(_prepare(base, cache, adapter=str(adapter)).content_hash)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("weight_type", [WeightType.INT8, WeightType.FLOAT16])
def test_merged_weights_are_converted(tmp_path: Path, weight_type: WeightType) -> None:
    """The merged model may have another number type."""
    base, adapter = _apart(tmp_path)
    graph = _prepare(base, tmp_path / "cache", adapter=str(adapter), weight_type=weight_type)
    assert graph.weight_type == weight_type


def _edit_tensors(**changes: Any) -> Callable[[Path], None]:
    def apply(adapter: Path) -> None:
        tensors: dict[str, Any] = {**load_file(adapter / WEIGHTS), **changes}
        kept = {name: values for name, values in tensors.items() if values is not None}
        save_file(kept, adapter / WEIGHTS)

    return apply


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    return lambda adapter: edit_json(adapter / CONFIG, **changes)


def _zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edit_config(peft_type="IA3"), "peft_type must be LORA, not IA3"),
        (_edit_config(bias="all"), "bias must be none"),
        (_edit_config(r=0), "r must be a whole number of at least 1"),
        (_edit_config(lora_alpha="x"), "lora_alpha must be a number"),
        (_edit_config(use_dora=True), r"use_dora is not supported: .*merge_and_unload"),
        (_edit_config(init_lora_weights="pissa"), "init_lora_weights must be true"),
        (_edit_config(strength=2), r"adapter_config\.json: strength.*accept_unknown_keys"),
        (_edit_config(rank_pattern={"(": 2}), "its patterns are wrong"),
        (_edit_config(r=5), "not rank 5"),
        (lambda adapter: (adapter / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (
            _edit_tensors(**{f"{LAYER}.lora_B.weight": None}),
            r"down_proj\.lora_B\.weight is missing",
        ),
        (
            _edit_tensors(**{f"{LAYER}.lora_A.weight": None}),
            r"lora_B\.weight has no lora_A\.weight",
        ),
        (_edit_tensors(**{f"{LAYER}.lora_B.weight": _zeros(41, 4)}), r"shape \[41, 80\], not"),
        (
            _edit_tensors(**{"base_model.model.score.weight": _zeros(1, 40)}),
            "neither a matrix of LoRA nor listed in modules_to_save",
        ),
        (
            _edit_tensors(
                **{
                    "base_model.model.layers.9.mlp.up_proj.lora_A.weight": _zeros(4, 40),
                    "base_model.model.layers.9.mlp.up_proj.lora_B.weight": _zeros(80, 4),
                }
            ),
            "the adapter belongs to another model",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    """The error names the file of the adapter, and what is wrong with it."""
    base, adapter = _apart(tmp_path)
    change(adapter)
    with pytest.raises(ModelError, match=message) as caught:
        _prepare(base, tmp_path / "cache", adapter=str(adapter))
    assert "adapter" in str(caught.value)


def test_an_adapter_that_says_other_things(tmp_path: Path) -> None:
    """An adapter with settings of its own is not used with those of the base model in silence."""
    base, _ = _apart(tmp_path)
    adapter = copy_fixture(ADAPTER, tmp_path)
    with pytest.raises(ModelError, match=r"differs from .*without setting adapter"):
        _prepare(base, tmp_path / "cache", adapter=str(adapter))


def test_an_adapter_needs_weights(tmp_path: Path) -> None:
    """An export cannot be changed, and an adapter alone is not a model."""
    base, adapter = _apart(tmp_path)
    with pytest.raises(ModelError, match="no weights to merge it into"):
        _prepare(FIXTURES / BASE, tmp_path / "cache", adapter=str(adapter))
    with pytest.raises(ModelError, match=r"without tests/fixtures/qwen3-last: serve that model"):
        _prepare(FIXTURES / ADAPTER, tmp_path / "cache")
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        _prepare(base, tmp_path / "cache", adapter=str(base))
