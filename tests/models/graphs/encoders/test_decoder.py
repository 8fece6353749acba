"""Decoders that are built from their weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import resolve
from tests.models.graphs.encoders.decoder_variants import (
    LAYERS,
    SIZE,
    VARIANTS,
    make_batch,
    make_config,
    make_tensors,
)
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

OUTPUT = "sentence_embedding"
# Products with weights in a layer.
PRODUCTS = 7
# Those of the tokenizer.
TOKENS = 1500


def _write(folder: Path, name: str, **changes: Any) -> Path:
    """Write a variant as a model that returns the mean and the last vector of a text."""
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "qwen3-last" / file, folder / file)
    (folder / "config.json").write_text(json.dumps(make_config(name)))
    edit_json(folder / "config.json", **changes)
    save_file(make_tensors(name), folder / "model.safetensors")
    kinds = ("Transformer", "Pooling")
    modules = [
        {"idx": n, "name": str(n), "path": "1_Pooling" if n else "",
         "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": SIZE, "pooling_mode": ["mean", "lasttoken"]}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def _prepare(folder: Path, cache_dir: Path, **overrides: Any) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files, ModelOverrides(**overrides)), cache_dir=cache_dir)


def _run(runner: Runner, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    return runner.backend.run(PaddedBatch(ids, mask, np.zeros_like(ids), (OUTPUT,)))[OUTPUT]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_vectors_are_those_of_the_reference(tmp_path: Path, name: str) -> None:
    """A text has the reference's vector in a batch, and the same alone and padded on the left."""
    runner = Runner.load(_write(tmp_path / "model", name), tmp_path / "cache")
    ids, mask = make_batch()
    reference = expected("decoder-variants")
    vectors = _run(runner, ids, mask)
    np.testing.assert_allclose(
        vectors, reference["variants"][name], rtol=0, atol=reference["tolerance"]
    )
    for row, length in enumerate(mask.sum(axis=1)):
        one = slice(row, row + 1)
        alone = _run(runner, ids[one, :length], mask[one, :length])
        np.testing.assert_allclose(alone[0], vectors[row], rtol=0, atol=5e-6)
    shift = mask.shape[1] - mask.sum(axis=1)
    left = [np.stack([np.roll(*one) for one in zip(of, shift, strict=True)]) for of in (ids, mask)]
    np.testing.assert_allclose(_run(runner, *left), vectors, rtol=0, atol=2e-5)


def test_a_file_of_a_causal_model(tmp_path: Path) -> None:
    """The tensors of a causal model have a prefix, and its head is not needed."""
    name = "qwen3"
    plain = Runner.load(_write(tmp_path / "plain", name), tmp_path / "cache")
    folder = _write(tmp_path / "model", name)
    tensors = {f"model.{key}": values for key, values in make_tensors(name).items()}
    tensors["lm_head.weight"] = np.ones((3, SIZE), np.float32)
    save_file(tensors, folder / "model.safetensors")
    batch = make_batch()
    np.testing.assert_array_equal(
        _run(Runner.load(folder, tmp_path / "cache"), *batch), _run(plain, *batch)
    )


def test_weights_in_bfloat16(tmp_path: Path) -> None:
    """Weights of any floating-point type are computed with in float32."""
    rounded = {
        key: values.astype(ml_dtypes.bfloat16) for key, values in make_tensors("qwen3").items()
    }
    folders = [_write(tmp_path / kind, "qwen3") for kind in ("bfloat16", "float32")]
    save_file(rounded, folders[0] / "model.safetensors")
    wide = {key: values.astype(np.float32) for key, values in rounded.items()}
    save_file(wide, folders[1] / "model.safetensors")
    half, full = (_run(Runner.load(one, tmp_path / "cache"), *make_batch()) for one in folders)
    np.testing.assert_array_equal(half, full)


@pytest.mark.parametrize("weight_type", [WeightType.INT8, WeightType.FLOAT16])
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_all_products_are_converted(tmp_path: Path, name: str, weight_type: WeightType) -> None:
    """No product with weights stays in float32, and keys and values are not copied."""
    # Conversion to int8 runs texts, and the tokenizer knows more tokens than the made-up model.
    tensors = make_tensors(name)
    table = np.resize(tensors["embed_tokens.weight"], (TOKENS, SIZE))
    tensors["embed_tokens.weight"] = table
    folder = _write(tmp_path / "model", name, vocab_size=TOKENS)
    save_file(tensors, folder / "model.safetensors")
    graph = _prepare(folder, tmp_path / "cache", weight_type=weight_type)
    model = onnx.load(graph.path, load_external_data=False)
    floats = {
        one.name for one in model.graph.initializer if one.data_type == 1 and len(one.dims) > 1
    }
    used = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert not [node.name for node in used if floats.intersection(node.input)]
    converted = [
        one for one in model.graph.initializer if "_proj" in one.name and one.data_type != 1
    ]
    assert len(converted) == PRODUCTS * LAYERS
    # An int8 graph expands the scales of tokens.
    copies = {"Tile"} if weight_type is WeightType.INT8 else {"Expand", "Tile"}
    assert not copies.intersection(node.op_type for node in model.graph.node)


_ROPE = {"rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "qwen3",
            {"rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 2}},
            "with dynamic",
        ),
        ("qwen3", {"rope_scaling": {"type": "longrope"}}, "with longrope, a text's vector depends"),
        ("qwen3", {"rope_scaling": {"type": "mrope"}}, "one of default, linear, llama3, yarn"),
        ("qwen3", {"rope_scaling": {"type": "linear"}}, "factor must be a number of at least 1"),
        ("qwen3", {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}, "factor must be 1"),
        ("qwen3", {"rope_parameters": {**_ROPE, "wave": 2}}, "wave must be absent"),
        ("qwen3", {"rope_theta": 0}, "rope_theta must be more than 1"),
        ("qwen3", {"head_dim": 7}, "head_dim must be even"),
        ("qwen3", {"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ("qwen3", {"rms_norm_eps": 2}, "rms_norm_eps must be a small number"),
        ("qwen3", {"hidden_act": "mish"}, "hidden_act must be one of"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "3 times full_attention"),
        ("qwen3", {"layer_types": ["full_attention"] * 2}, "3 times full_attention"),
        ("qwen3", {"num_hidden_layers": 1000}, "the number of layers of"),
        ("qwen2 windows", {"sliding_window": None}, "sliding_window must be a whole number"),
        ("qwen2 windows", {"max_window_layers": None}, "max_window_layers must be a whole number"),
        ("qwen2 windows", {"is_causal": False}, "is_causal must be true"),
        ("mistral windows", {"layer_types": ["sliding_attention"] * 3}, "3 times full_attention"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping must be null"),
        ("gemma3", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be more than 0"),
        (
            "gemma3",
            {"rope_parameters": _ROPE},
            "an object with full_attention and sliding_attention",
        ),
        ("gemma3", {"scale_of_vectors": 2}, "scale_of_vectors.*accept_unknown_keys"),
        ("qwen3", {"auto_map": {"AutoModel": "m.M"}}, "code of its own, which is not run"),
    ],
)
def test_a_value_that_is_not_supported(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    """The error names the file and the key."""
    folder = _write(tmp_path / "model", name, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        _prepare(folder, tmp_path / "cache")
    assert str(folder) in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    ["embed_tokens.weight", "norm.weight", "layers.1.self_attn.k_norm.weight",
     "layers.1.self_attn.o_proj.weight", "layers.0.post_feedforward_layernorm.weight"],
)  # fmt: skip
def test_every_tensor_is_checked(tmp_path: Path, tensor: str) -> None:
    """A tensor that is missing or has another shape is named."""
    folder = copy_fixture("gemma-dense", tmp_path, leave_out=["onnx"])
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, tensor: np.concatenate([tensors[tensor]] * 2)}, path)
    with pytest.raises(ModelError, match=f"config.json: {tensor} has shape"):
        _prepare(folder, tmp_path / "cache")
    save_file({key: values for key, values in tensors.items() if key != tensor}, path)
    with pytest.raises(ModelError, match=f"config.json: {tensor} is missing"):
        _prepare(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen2", {"is_causal": False}),
        ("qwen2 windows", {"sliding_window": 6}),
        ("qwen2", {"rope_theta": 9999.0}),
        ("gemma3", {"use_bidirectional_attention": False}),
        ("gemma3", {"query_pre_attn_scalar": 21}),
    ],
)
def test_the_fingerprint_contains_what_changes_vectors(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    """The same weights with another attention are another embedding space."""
    one = _prepare(_write(tmp_path / "one", name), tmp_path / "cache")
    other = _prepare(_write(tmp_path / "other", name, **changes), tmp_path / "cache")
    assert one.content_hash != other.content_hash
