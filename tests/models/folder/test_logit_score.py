"""The tokens whose logits are the score of a causal reranker."""

# Tokens of text are no passwords.
# ruff: noqa: S106

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.logit_score import LogitScore
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Activation, Kind, PairTemplate
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

NAME = "cross-qwen3-causal"
ADDED = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
         "1_LogitScore", "onnx")  # fmt: skip
QWEN3 = PairTemplate.QWEN3_RERANKER


def _read(folder: Path, **overrides: Any) -> ModelProperties:
    return read(resolve(str(folder)), ModelOverrides(**overrides))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a causal reranker that a test may change."""
    return copy_fixture(NAME, tmp_path, leave_out=["onnx"])


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The files of the authors alone, with a chat template for pairs."""
    return Path(
        shutil.copytree(FIXTURES / NAME, tmp_path / "bare", ignore=shutil.ignore_patterns(*ADDED))
    )


def test_the_module_names_the_tokens() -> None:
    """A folder of sentence-transformers needs no setting."""
    found = _read(FIXTURES / NAME)
    assert found.kind is Kind.CROSS_ENCODER
    assert found.logit_score == LogitScore(351, 312)
    assert found.activation is Activation.SIGMOID
    assert _read(FIXTURES / "cross-gemma-causal").logit_score == LogitScore(262)


def test_settings_name_the_tokens(folder: Path, bare: Path) -> None:
    """They win over the module, and are enough for a folder with a template."""
    assert _read(folder, true_token="no", false_token="yes").logit_score == LogitScore(312, 351)
    assert _read(folder, true_token="no").logit_score == LogitScore(312)
    assert _read(folder, false_token="yes").logit_score == LogitScore(351, 351)
    found = _read(bare, true_token="yes")
    assert found.logit_score == LogitScore(351)
    assert Tokenizer.load(found).pair_texts is not None
    assert _read(bare, pair_template=QWEN3).logit_score == LogitScore(351, 312)
    assert _read(bare, pair_template=QWEN3, false_token="0").logit_score == LogitScore(351, 15)
    mxbai = _read(bare, pair_template=PairTemplate.MXBAI_RERANK_V2)
    assert mxbai.activation is Activation.IDENTITY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"config\.json: .*ForCausalLM.*pair_template.*true_token"),
        ({"true_token": "oui"}, r"tokenizer\.json: the vocabulary has no token 'oui'"),
        ({"false_token": "no"}, "set true_token too"),
        ({"pair_template": PairTemplate.BGE_RERANKER_V2_GEMMA, "true_token": ""}, "'Yes'"),
    ],
)
def test_settings_that_are_not_enough_are_refused(
    bare: Path, settings: dict[str, Any], message: str
) -> None:
    """The error says what is missing."""
    if "Yes" in message:
        path = bare / "tokenizer.json"
        path.write_text(path.read_text("utf-8").replace('"Yes"', '"Yep"'), "utf-8")
    with pytest.raises(ModelError, match=message):
        _read(bare, **settings)


def test_a_token_needs_a_template(bare: Path) -> None:
    """Without one, it is unknown how a pair is written."""
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"chat_template\.jinja is missing.*pair_template"):
        Tokenizer.load(_read(bare, true_token="yes"))
    (bare / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    with pytest.raises(ModelError, match="does not write the query and then"):
        Tokenizer.load(_read(bare, true_token="yes"))


@pytest.mark.parametrize("setting", [{"true_token": "a"}, {"pair_template": QWEN3}])
def test_settings_of_causal_models_are_refused_for_others(setting: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ModelError, match=f"{next(iter(setting))} is set"):
        _read(FIXTURES / "cross-bert", **setting)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_LogitScore/config.json", {"true_token_id": None}, "true_token_id must be"),
        ("1_LogitScore/config.json", {"true_token_id": -1}, "true_token_id must be"),
        ("1_LogitScore/config.json", {"true_token_id": 570}, "vocab_size must be more than 570"),
        ("1_LogitScore/config.json", {"false_token_id": 9999}, "vocab_size must be more than 9999"),
        ("1_LogitScore/config.json", {"module_input_name": "x"}, "must be causal_logits"),
        ("sentence_bert_config.json", {"transformer_task": None}, "must be text-generation"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "contradicts"),
    ],
)
def test_broken_modules_are_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """One line names the file and the key."""
    edit_json(folder / file, **changes)
    if "transformer_task" in changes:
        edit_json(folder / file, modality_config=None, module_output_name=None)
    with pytest.raises(ModelError, match=message):
        _read(folder)


@pytest.mark.parametrize("cap", [None, 2.5])
def test_a_head_of_its_own_and_a_cap_are_followed(
    folder: Path, tmp_path: Path, cap: float | None
) -> None:
    """Weights with a head win over shared ones; the cap bends each logit before the difference."""
    tensors = load_file(folder / "model.safetensors")
    head = np.random.default_rng(5).standard_normal((570, 32)).astype(np.float32)
    plain = Runner.load(folder, tmp_path / "cache")
    pairs = expected(NAME)["pairs"][:3]
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    if cap is not None:
        edit_json(folder / "config.json", final_logit_softcapping=cap)
    properties = _read(folder, accept_unknown_keys=True)
    graph = prepare(resolve(str(folder)), properties, cache_dir=tmp_path / "cache")
    backend = type(plain.backend)(graph.path, device="cpu")
    runner = Runner(properties, plain.tokenizer, graph, backend)
    found = runner.run(runner.tokenize_pairs(pairs), "logits")[:, 0]
    # Each token alone, as a score without a false token.
    singles = []
    for place, token in enumerate((351, 312)):
        other = copy_fixture(NAME, tmp_path / str(place), leave_out=["onnx"])
        edit_json(other / "1_LogitScore" / "config.json", true_token_id=token, false_token_id=None)
        save_file(tensors | {"lm_head.weight": head}, other / "model.safetensors")
        single = Runner.load(other, tmp_path / "cache")
        singles.append(single.run(single.tokenize_pairs(pairs), "logits")[:, 0])
    bent = singles if cap is None else [cap * np.tanh(one / cap) for one in singles]
    np.testing.assert_allclose(found, bent[0] - bent[1], rtol=0, atol=1e-5)
    assert np.abs(found - plain.run(plain.tokenize_pairs(pairs), "logits")[:, 0]).max() > 0.01


def test_shared_weights_must_be_said(folder: Path, tmp_path: Path) -> None:
    """Without a head and without the key, the reference would make one up."""
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"tie_word_embeddings must be true"):
        Runner.load(folder, tmp_path / "cache")
