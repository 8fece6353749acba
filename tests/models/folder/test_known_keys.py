"""Keys of a model's files that nobody reads must not change results in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.known_keys import (
    CONFIG,
    EXTRAS,
    MODULE_CONFIGS,
    TOKENIZER,
    TRANSFORMER,
    Keys,
    Use,
    config_keys,
)
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.folder.routes import read_routes
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.sources.source import resolve
from tests.models.runner import DEFAULT_MODEL, FIXTURES, copy_fixture, edit_json

REFERENCE = json.loads(Path(__file__).with_name("reference_keys.json").read_text("utf-8"))
FOLDERS = sorted(
    path.name
    for path in FIXTURES.iterdir()
    if (path / "config.json").exists() or (path / "router_config.json").exists()
)
FILES = {
    "config.json": CONFIG,
    "config_sentence_transformers.json": EXTRAS,
    "tokenizer_config.json": TOKENIZER,
}
MODULES = MODULE_CONFIGS | {"Transformer": TRANSFORMER}


def _read(folder: Path, **overrides: Any) -> ModelProperties:
    return read(resolve(str(folder)), ModelOverrides(**overrides))


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        *(pytest.param(keys, REFERENCE[name], id=name) for name, keys in FILES.items()),
        *(pytest.param(keys, REFERENCE["modules"][one], id=one) for one, keys in MODULES.items()),
        *(
            pytest.param(config_keys(one)[0], names, id=one)
            for one, names in REFERENCE["families"].items()
        ),
    ],
)
def test_every_key_of_the_reference_has_a_verdict(keys: Keys, names: list[str]) -> None:
    """A release of the reference libraries with a new key shows what is not known."""
    assert [name for name in names if keys.use_of(name) is Use.UNKNOWN] == []


@pytest.mark.parametrize(
    "keys",
    [*FILES.values(), *MODULES.values(), *(config_keys(one)[0] for one in REFERENCE["families"])],
)
def test_a_key_has_one_verdict(keys: Keys) -> None:
    """No key is in two tables of one file."""
    assert not keys.followed & keys.harmless
    assert not keys.refused.keys() & (keys.followed | keys.harmless)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_keys_of_the_fixtures_are_known(name: str) -> None:
    """Folders as the libraries write them need no setting."""
    routes = read_routes(resolve(str(FIXTURES / name))).by_route
    assert not any(route.accepted_keys for route in routes.values())


def test_the_keys_of_the_default_model_are_known() -> None:
    """The default model needs no setting either."""
    assert not read(resolve(DEFAULT_MODEL)).accepted_keys


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    ],
)
def test_an_unknown_key_is_refused_or_accepted(tmp_path: Path, file: str) -> None:
    """The error names the file, the key and the setting, which changes the fingerprint."""
    folder = copy_fixture("bert-mean", tmp_path)
    plain = _fingerprint(folder, tmp_path)
    edit_json(folder / file, scale_of_vectors=2)
    with pytest.raises(ModelError, match=rf"{file}: scale_of_vectors.*accept_unknown_keys"):
        _read(folder)
    accepted = _read(folder, accept_unknown_keys=True)
    assert accepted.accepted_keys == {f"{file}: scale_of_vectors": 2}
    assert f"{file}: " in " ".join(accepted.keys)
    changed = _fingerprint(folder, tmp_path, accept_unknown_keys=True)
    edit_json(folder / file, scale_of_vectors=3)
    assert plain != changed != _fingerprint(folder, tmp_path, accept_unknown_keys=True)


def _fingerprint(folder: Path, cache_dir: Path, **overrides: Any) -> str:
    properties = _read(folder, **overrides)
    return identify(resolve(str(folder)), properties, cache_dir=cache_dir / "cache").content_hash


def test_an_unknown_key_of_a_module_list_is_refused(tmp_path: Path) -> None:
    """The entries of modules.json are checked as well."""
    folder = copy_fixture("bert-mean", tmp_path)
    path = folder / "modules.json"
    entries = json.loads(path.read_text())
    entries[1]["skip"] = True
    path.write_text(json.dumps(entries))
    with pytest.raises(ModelError, match=r"modules\.json: skip"):
        _read(folder)


def test_an_export_contains_what_config_json_says(tmp_path: Path) -> None:
    """With an ONNX export, unknown keys of config.json change nothing, and are counted."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_json(folder / "config.json", scale_of_vectors=2, auto_map={"AutoModel": "m.Model"})
    properties = _read(folder)
    assert not properties.accepted_keys
    assert "in the graph" in properties.keys[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map.AutoTokenizer is not supported"),
        ({"sentence_transformers": {"scale": 2}}, "sentence_transformers.scale.*accept_unknown"),
    ],
)
def test_an_export_does_not_contain_everything(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What config.json says of the tokenizer and of scores counts for an export, too."""
    folder = copy_fixture("cross-bert", tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        _read(folder)


def test_safetensors_instead_of_an_export_need_known_keys(tmp_path: Path) -> None:
    """Where an export is not used, config.json says what is computed, and all keys count."""
    folder = copy_fixture("cross-no-types", tmp_path)
    plain = _fingerprint(folder, tmp_path)
    edit_json(folder / "config.json", scale_of_vectors=2)
    assert not _read(folder).accepted_keys
    with pytest.raises(ModelError, match=r"config\.json: scale_of_vectors.*accept_unknown_keys"):
        _fingerprint(folder, tmp_path)
    assert _fingerprint(folder, tmp_path, accept_unknown_keys=True) != plain
    edit_json(folder / "config.json", pruned_heads={"0": [1]})
    with pytest.raises(ModelError, match="pruned_heads is not supported"):
        _fingerprint(folder, tmp_path, accept_unknown_keys=True)


def test_code_of_the_backbone_is_unknown(tmp_path: Path) -> None:
    """A Transformer of the model's own is accepted by the setting, or where it is known."""
    folder = copy_fixture("bert-mean", tmp_path)
    path = folder / "modules.json"
    entries = json.loads(path.read_text())
    entries[0]["type"] = "custom_st.Transformer"
    path.write_text(json.dumps(entries))
    with pytest.raises(ModelError, match=r"type \(custom_st\.Transformer is code"):
        _read(folder)
    accepted = _read(folder, accept_unknown_keys=True).accepted_keys
    assert accepted == {"modules.json: type": "custom_st.Transformer"}
    tasks = copy_fixture("task-by-prompt", tmp_path)
    entries = json.loads((tasks / "modules.json").read_text())
    entries[0]["type"] = "custom_st.Transformer"
    (tasks / "modules.json").write_text(json.dumps(entries))
    assert not _read(tasks).accepted_keys


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "m.M"}}, "code of its own, which is not run"),
        ("config.json", {"pruned_heads": {"1": [0]}}, "pruned_heads is not supported"),
        ("config.json", {"quantization_config": {"bits": 4}}, "save them as float32"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length is not supported"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "any-to-any"},
            "it is any-to-any, not one of",
        ),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "a LogitScore"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"truncation": False}}},
            r"processing_kwargs\.text\.truncation is not supported",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"chat_template": {"max_length": 9}}},
            r"processing_kwargs\.chat_template\.max_length is not supported",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"chat_template": {"restore_suffix": False}}},
            "restore_suffix is not supported: remove it",
        ),
        (
            "sentence_bert_config.json",
            {"module_output_name": "sentence_embedding"},
            "module_output_name is not supported: it must be token_embeddings",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "get_text_features"}}},
            "modality_config.text.method is not supported: it must be forward",
        ),
        (
            "sentence_bert_config.json",
            {
                "modality_config": {
                    "text": {"method": "forward", "method_output_name": ["hidden_states", -2]}
                }
            },
            "modality_config.text.method_output_name is not supported: it must be last_hidden",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"image": {"method": "forward"}}},
            "modality_config is not supported: the model takes no text",
        ),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["t.T", None]}},
            "code of its own",
        ),
        ("sentence_bert_config.json", {"model_args": {"n": 1}}, r"model_args\.n"),
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, r"config_args\."),
        ("sentence_bert_config.json", {"tokenizer_args": {"x": 1}}, r"tokenizer_args\.x"),
        ("sentence_bert_config.json", {"model_kwargs": {"model_max_length": 9}}, "model_kwargs"),
        (
            "tokenizer_config.json",
            {"fix_mistral_regex": True},
            "fix_mistral_regex is not",
        ),
        ("config_sentence_transformers.json", {"query_prefix": "[Q] "}, "late interaction"),
    ],
)
def test_a_refused_key_says_what_to_do(
    tmp_path: Path, file: str, keys: dict[str, Any], message: str
) -> None:
    """Keys that change results in a way that is not supported are refused by name."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / file, **keys)
    with pytest.raises(ModelError, match=message):
        _read(folder)


@pytest.mark.parametrize("key", ["pruned_heads", "quantization_config", "auto_map"])
def test_an_empty_value_is_accepted(tmp_path: Path, key: str) -> None:
    """Libraries write many keys with a value that says nothing."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", **{key: {}})
    assert not _read(folder).accepted_keys


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_arguments_of_the_tokenizer_win(tmp_path: Path, key: str) -> None:
    """They win over max_seq_length and tokenizer_config.json."""
    folder = copy_fixture("bert-mean", tmp_path)
    arguments = {"model_max_length": 17, "truncation_side": "left", "use_fast": True}
    edit_json(folder / "sentence_bert_config.json", max_seq_length=40, **{key: arguments})
    properties = _read(folder)
    assert (properties.max_tokens, properties.truncation) == (17, "start")


def test_kept_dimensions_are_followed(tmp_path: Path) -> None:
    """`truncate_dim` is part of the fingerprint, unless it keeps all values."""
    folder = copy_fixture("bert-mean", tmp_path)
    plain = _fingerprint(folder, tmp_path)
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=32)
    assert (_read(folder).truncate_dim, _fingerprint(folder, tmp_path)) == (0, plain)
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=8)
    properties = _read(folder)
    assert (properties.truncate_dim, properties.vector_dimensions) == (8, 8)
    assert properties.normalize
    assert not properties.normalized
    assert _fingerprint(folder, tmp_path) != plain


def test_active_dimensions_are_followed(tmp_path: Path) -> None:
    """`max_active_dims` is the default number of terms, and part of the fingerprint."""
    folder = copy_fixture("splade-bert", tmp_path)
    plain = _fingerprint(folder, tmp_path)
    edit_json(folder / "config_sentence_transformers.json", max_active_dims=5)
    assert _read(folder).max_active_dims == 5
    assert _fingerprint(folder, tmp_path) != plain
