"""Encoders with rotary positions: ModernBERT, NomicBERT and gte."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected
from tests.models.sparse_vectors import assert_reference

NAMES = ("modernbert-mean", "nomic-mean", "gte-cls", "gte-new-cls")
PLAIN = ("input_ids", "attention_mask")


def _prepare(folder: Path, cache_dir: Path, **overrides: Any) -> Graph:
    files = resolve(str(folder))
    return prepare(files, read(files, ModelOverrides(**overrides)), cache_dir=cache_dir)


def _vectors(folder: Path, cache_dir: Path) -> Any:
    runner = Runner.load(folder, cache_dir)
    texts = expected("modernbert-mean")["texts"]
    return runner.run(runner.tokenize(texts), "sentence_embedding")


@pytest.mark.parametrize(
    ("name", "inputs"),
    [(name, (*PLAIN, "token_type_ids") if name == "nomic-mean" else PLAIN) for name in NAMES],
)
def test_inputs(tmp_path: Path, name: str, inputs: tuple[str, ...]) -> None:
    """Token types are an input where the family has several."""
    assert _prepare(FIXTURES / name, tmp_path).inputs == inputs


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_one_operator(tmp_path: Path, name: str) -> None:
    """Each layer has one node of attention, two that rotate, and fused normalisations."""
    graph = _prepare(FIXTURES / name, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    kinds = [node.op_type for node in optimized.graph.node]
    assert kinds.count("MultiHeadAttention") == 4
    assert kinds.count("RotaryEmbedding") == 8
    # A sum that a later layer also adds to is not fused.
    wanted = {"modernbert-mean": 1, "nomic-mean": 9}.get(name, 8)
    assert kinds.count("SkipLayerNormalization") == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_does_not_depend_on_its_batch(tmp_path: Path, name: str) -> None:
    """A text has the same vector alone, among others, beside a long one, and padded."""
    runner = Runner.load(FIXTURES / name, tmp_path)
    sequences = runner.tokenize(expected(name)["texts"])
    together = runner.run(sequences, "sentence_embedding")
    for row, sequence in enumerate(sequences):
        alone = runner.run([sequence], "sentence_embedding")[0]
        padded = runner.run([sequence], "sentence_embedding", tokens=200)[0]
        np.testing.assert_allclose(together[row], alone, rtol=0, atol=1e-6)
        np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("weight_type", "least"), [(WeightType.FLOAT16, 0.99999), (WeightType.INT8, 0.98)]
)
def test_other_weight_types(
    tmp_path: Path, name: str, weight_type: WeightType, least: float
) -> None:
    """All products with weights are converted, and vectors stay close."""
    graph = _prepare(FIXTURES / name, tmp_path, weight_type=weight_type)
    model = onnx.load(graph.path, load_external_data=False)
    matrices = {t.name for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 1}
    assert not [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices
    ]
    session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    reference = expected(name)
    for ids, wanted in zip(
        reference["token_ids"], reference["outputs"]["default"]["vectors"], strict=True
    ):
        row = np.array([ids])
        feeds = {"input_ids": row, "attention_mask": row * 0 + 1, "token_type_ids": row * 0}
        (vectors,) = session.run(["sentence_embedding"], {k: feeds[k] for k in graph.inputs})
        assert float(np.asarray(vectors)[0] @ wanted) > least


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modernbert-mean", {"local_attention": 4}),
        ("modernbert-mean", {"layer_types": ["full_attention"] * 4}),
        ("modernbert-mean", {"norm_eps": 0.1}),
        ("modernbert-mean", {"hidden_activation": "relu"}),
        ("nomic-mean", {"rotary_emb_base": 20}),
        ("nomic-mean", {"n_head": 4}),
        ("nomic-mean", {"layer_norm_epsilon": 0.1}),
        ("gte-cls", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        ("gte-new-cls", {"rope_scaling": {"type": "ntk", "factor": 2.0}}),
        ("gte-new-cls", {"rope_scaling": {"type": "ntk", "factor": 4.0, "mixed_b": 0.5}}),
        ("gte-new-cls", {"rope_theta": 9000.0}),
        ("gte-new-cls", {"type_vocab_size": 0}),
    ],
)
def test_a_key_changes_vectors_and_fingerprint(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    """What the fixtures compare with the reference depends on each of these keys."""
    folder = copy_fixture(name, tmp_path)
    properties = read(resolve(str(folder)))
    before = identify(resolve(str(folder)), properties, cache_dir=tmp_path / "cache")
    edit_json(folder / "config.json", **changes)
    properties = read(resolve(str(folder)))
    after = identify(resolve(str(folder)), properties, cache_dir=tmp_path / "cache")
    assert after.content_hash != before.content_hash
    vectors = _vectors(folder, tmp_path / "cache")
    wanted = np.array(expected(name)["outputs"]["default"]["vectors"])
    assert np.abs(vectors - wanted).max() > 1e-4


def test_the_export_of_the_same_weights_agrees(tmp_path: Path) -> None:
    """A graph built from safetensors and PyTorch's export of the model give the same vectors."""
    folder = copy_fixture("modernbert-cls", tmp_path, leave_out=["onnx"])
    built = Runner.load(folder, tmp_path / "cache")
    exported = Runner.load(FIXTURES / "modernbert-cls", tmp_path / "cache")
    sequences = built.tokenize(expected("modernbert-cls")["texts"])
    assert max(len(sequence.input_ids) for sequence in sequences) > 16  # the window
    one, other = (model.run(sequences, "pooled_embedding") for model in (built, exported))
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["splade-modernbert", "splade-gte"])
def test_masked_language_heads(tmp_path: Path, name: str) -> None:
    """Sparse vectors are those of the reference."""
    assert_reference(Runner.load(FIXTURES / name, tmp_path), name)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("splade-modernbert", "decoder.bias"),
        ("splade-modernbert", "head.dense.weight"),
        ("splade-gte", "lm_head.dense.bias"),
        ("splade-gte", "lm_head.norm.bias"),
    ],
)
def test_every_tensor_of_the_masked_language_head_is_checked(
    tmp_path: Path, name: str, tensor: str
) -> None:
    """A bias may only be missing where config.json says so."""
    folder = copy_fixture(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"config.json: {tensor} is missing"):
        _prepare(folder, tmp_path / "cache")


def test_the_head_of_the_older_code(tmp_path: Path) -> None:
    """It has another prefix."""
    folder = copy_fixture("splade-gte", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(r"^gte\.", "new.", name): values for name, values in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    rotation = {"rope_parameters": None, "rope_theta": 160_000.0}
    edit_json(folder / "config.json", model_type="new", **rotation)
    assert_reference(Runner.load(folder, tmp_path / "cache"), "splade-gte")


def test_older_and_newer_keys_say_the_same(tmp_path: Path) -> None:
    """A NomicBERT that transformers saved has its own names for keys and parameters."""
    folder = copy_fixture("nomic-mean", tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    newer = {
        "hidden_size": config["n_embd"],
        "num_attention_heads": config["n_head"],
        "num_hidden_layers": config["n_layer"],
        "intermediate_size": config["n_inner"],
        "layer_norm_eps": config["layer_norm_epsilon"],
        "vocab_size": 1216,
        "head_dim": 8,
        "hidden_act": "silu",
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    path.write_text(json.dumps(newer))
    wanted = expected("nomic-mean")["outputs"]["default"]["vectors"]
    np.testing.assert_allclose(_vectors(folder, tmp_path / "cache"), wanted, rtol=0, atol=1e-5)


def test_the_limit_of_older_keys_is_the_trained_length(tmp_path: Path) -> None:
    """As the reference, where no other file has a limit."""
    folder = copy_fixture("nomic-mean", tmp_path)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=8192)
    assert read(resolve(str(folder))).max_tokens == 2048


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("modernbert-mean", "layers.1.attn_norm.weight"),
        ("modernbert-mean", "final_norm.weight"),
        ("cross-modernbert", "model.layers.0.attn.Wqkv.bias"),
        ("cross-modernbert", "head.norm.bias"),
        ("cross-modernbert", "classifier.weight"),
        ("nomic-mean", "encoder.layers.3.mlp.fc12.weight"),
        ("nomic-mean", "embeddings.word_embeddings.weight"),
        ("gte-new-cls", "embeddings.token_type_embeddings.weight"),
        ("gte-cls", "encoder.layer.0.mlp.up_gate_proj.weight"),
        ("cross-gte-new", "gte.pooler.dense.bias"),
    ],
)
def test_every_tensor_is_checked(tmp_path: Path, name: str, tensor: str) -> None:
    """A tensor that is missing or has another shape is named."""
    folder = copy_fixture(name, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    values = tensors.pop(tensor)
    save_file({**tensors, tensor: np.concatenate([values, values])}, path)
    with pytest.raises(ModelError, match=f"config.json: {tensor} has shape"):
        _prepare(folder, tmp_path / "cache")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"config.json: {tensor} is missing"):
        _prepare(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("modernbert-mean", {"num_attention_heads": 3}, "a multiple of num_attention_heads"),
        ("modernbert-mean", {"head_dim": 4}, "head_dim must be 8"),
        ("modernbert-mean", {"layer_types": ["full_attention"]}, "layer_types must be 4 times"),
        ("modernbert-mean", {"layer_types": ["causal"] * 4}, "layer_types must be 4 times"),
        ("modernbert-mean", {"rope_parameters": {"rope_theta": 9.0}}, "rope_parameters must be"),
        ("modernbert-mean", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling must be null"),
        (
            "modernbert-mean",
            {"num_hidden_layers": 900, "layer_types": None},
            "the number of layers",
        ),
        ("cross-modernbert", {"classifier_pooling": "max"}, "classifier_pooling must be cls or"),
        ("nomic-mean", {"activation_function": "gelu"}, "activation_function must be swiglu"),
        ("nomic-mean", {"prenorm": True}, "prenorm must be false"),
        ("nomic-mean", {"qkv_proj_bias": True}, "qkv_proj_bias must be false"),
        ("nomic-mean", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction must be 1"),
        ("nomic-mean", {"rotary_scaling_factor": 2}, "longest text of its batch"),
        ("nomic-mean", {"num_attention_heads": 4}, "n_head must be the same as num_attention"),
        ("nomic-mean", {"rope_theta": 10.0}, "rotary_emb_base must be the rope_theta 10"),
        ("nomic-mean", {"n_layer": 900}, "the number of layers"),
        ("nomic-mean", {"n_layer": 10**9}, "at most 1024"),
        ("nomic-mean", {"type_vocab_size": 0}, "type_vocab_size must be at least 1"),
        ("gte-cls", {"type_vocab_size": 2}, "type_vocab_size must be 0 or 1"),
        ("gte-cls", {"rope_scaling": {"type": "ntk", "factor": 2}}, "rope_type must be one of"),
        ("gte-new-cls", {"rope_scaling": {"type": "linear", "factor": 2}}, "type must be ntk"),
        ("gte-new-cls", {"rope_scaling": {"type": "ntk"}}, "factor must be a number of at least 1"),
        ("gte-new-cls", {"position_embedding_type": "absolute"}, "type must be rope"),
        ("gte-new-cls", {"layer_norm_type": "rms_norm"}, "layer_norm_type must be layer_norm"),
        ("gte-new-cls", {"logn_attention_scale": True}, "logn_attention_scale must be false"),
        ("gte-new-cls", {"pack_qkv": False}, "pack_qkv must be true"),
        ("gte-new-cls", {"layer_norm_eps": 2}, "layer_norm_eps must be a small number"),
    ],
)
def test_keys_of_the_family_are_checked(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    """The error names the file and the key."""
    folder = copy_fixture(name, tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        _prepare(folder, tmp_path / "cache")
    assert message in str(caught.value)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("nomic-mean", "num_experts", 8),
        ("nomic-mean", "moe_every_n_layers", 2),
        ("nomic-mean", "rotary_emb_scale_base", 512),
        ("nomic-mean", "auto_map", {"AutoModel": "owner/code--modeling.NomicBertModel"}),
        ("nomic-mean", "auto_map", {"AutoTokenizer": "tokenization.Tokenizer"}),
        ("nomic-mean", "auto_map", ["modeling_hf_nomic_bert.NomicBertModel"]),
        ("gte-new-cls", "auto_map", {"AutoModel": "owner/code--modeling.NewerModel"}),
        ("gte-cls", "auto_map", {"AutoModel": "owner/code--modeling.NewModel"}),
        ("modernbert-mean", "auto_map", {"AutoModel": "owner/code--modeling.NewModel"}),
    ],
)
def test_other_code_is_refused(tmp_path: Path, name: str, key: str, value: Any) -> None:
    """Custom code counts as known only if all its classes are those of the published models."""
    folder = copy_fixture(name, tmp_path)
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(ModelError, match=f"config.json: {key} is not supported: "):
        read(resolve(str(folder)))
