import json
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.kinds import Activation, Kind, Pooling, Similarity, Truncation
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, copy_fixture, edit_json


def _read(folder: Path) -> ModelProperties:
    return read(resolve(str(folder)))


def _modules(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "idx": index,
            "path": "" if name == "Transformer" else f"{index}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ({"pooling_mode": "mean"}, (Pooling.MEAN,)),
        ({"pooling_mode": "lasttoken"}, (Pooling.LAST_TOKEN,)),
        ({"pooling_mode": ["mean", "cls"]}, (Pooling.MEAN, Pooling.CLS)),
        ({"pooling_mode_weightedmean_tokens": True}, (Pooling.WEIGHTED_MEAN,)),
        (
            {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
            (Pooling.CLS, Pooling.MAX),
        ),
        (
            {"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_lasttoken": True},
            (Pooling.MEAN_SQRT_LEN, Pooling.LAST_TOKEN),
        ),
        ({"pooling_mode_mean_tokens": False}, (Pooling.MEAN,)),
    ],
)
@pytest.mark.parametrize("size_key", ["embedding_dimension", "word_embedding_dimension"])
def test_poolings(
    tmp_path: Path, pooling: dict[str, Any], wanted: tuple[Pooling, ...], size_key: str
) -> None:
    """Both schemas of the Pooling module work; several poolings are concatenated."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({size_key: 32, **pooling}))
    properties = _read(folder)
    assert properties.poolings == wanted
    assert properties.dimensions == 32 * len(wanted)


def test_normalize_is_a_module(tmp_path: Path) -> None:
    """Without a Normalize module, vectors are not normalised."""
    folder = copy_fixture("bert-mean", tmp_path)
    assert _read(folder).normalize
    (folder / "modules.json").write_text(json.dumps(_modules("Transformer", "Pooling")))
    assert not _read(folder).normalize


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, Activation.SIGMOID),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            Activation.IDENTITY,
        ),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
            Activation.SIGMOID,
        ),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            Activation.IDENTITY,
        ),
    ],
)
def test_activation(tmp_path: Path, changes: dict[str, Any], wanted: Activation) -> None:
    """A cross-encoder's score is the sigmoid of its logit, unless config.json says otherwise."""
    folder = copy_fixture("cross-bert", tmp_path)
    edit_json(folder / "config.json", **changes)
    properties = _read(folder)
    assert properties.kind is Kind.CROSS_ENCODER
    assert properties.activation is wanted
    assert (properties.dimensions, properties.poolings) == (0, ())


def test_activation_of_the_newer_schema(tmp_path: Path) -> None:
    """Newer cross-encoders have modules and another file for the activation."""
    folder = copy_fixture("cross-bert", tmp_path)
    (folder / "modules.json").write_text(json.dumps(_modules("Transformer")))
    extras = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(extras))
    properties = _read(folder)
    assert properties.kind is Kind.CROSS_ENCODER
    assert properties.activation is Activation.IDENTITY


@pytest.mark.parametrize(
    ("settings", "tokenizer", "config", "wanted"),
    [
        ({"max_seq_length": 64}, {"model_max_length": 512}, {}, 64),
        ({"max_seq_length": 64}, {"model_max_length": 32}, {}, 64),
        ({"max_seq_length": 500}, {"model_max_length": 512}, {}, 128),
        ({"max_seq_length": None}, {"model_max_length": 512}, {}, 128),
        ({"max_seq_length": None}, {"model_max_length": 100}, {}, 100),
        ({"max_seq_length": None}, {"model_max_length": 1e30}, {}, 128),
        ({"max_seq_length": None}, {"model_max_length": None}, {}, 128),
        (
            {"max_seq_length": None},
            {"model_max_length": 512},
            {"model_type": "roberta", "pad_token_id": 1},
            126,
        ),
        ({"max_seq_length": 128}, {}, {"model_type": "xlm-roberta", "pad_token_id": 1}, 126),
        ({"max_seq_length": 500}, {}, {"model_type": "jina_bert"}, 500),
    ],
)
def test_max_tokens(
    tmp_path: Path,
    settings: dict[str, Any],
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    wanted: int,
) -> None:
    """max_seq_length counts, else the smallest other limit; never beyond the position table."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "sentence_bert_config.json", **settings)
    edit_json(folder / "tokenizer_config.json", **tokenizer)
    edit_json(folder / "config.json", **config)
    assert _read(folder).max_tokens == wanted


def test_max_tokens_of_an_older_file_name(tmp_path: Path) -> None:
    """Older releases named the file with the limit after the architecture."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert _read(folder).max_tokens == 64


def test_prompts(tmp_path: Path) -> None:
    """Prompts, default prompt and similarity are read; a null prompt is empty."""
    folder = copy_fixture("bert-st54", tmp_path)
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: ", "document": None},
        default_prompt_name="query",
        similarity_fn_name="dot",
    )
    properties = _read(folder)
    assert properties.prompts == {"query": "query: ", "document": ""}
    assert properties.default_prompt_name == "query"
    assert properties.similarity is Similarity.DOT


def test_padding(tmp_path: Path) -> None:
    """Padding goes on the right, whatever the tokenizer says; either file may set the token."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    edit_json(folder / "config.json", pad_token_id=None)
    properties = _read(folder)
    assert (properties.padding_side, properties.pad_token_id) == ("right", 0)
    edit_json(folder / "config.json", model_type="qwen3")
    assert _read(folder).padding_side == "right"
    edit_json(folder / "tokenizer_config.json", pad_token={"content": "[MASK]"})
    assert _read(folder).pad_token_id == 4


def test_truncation(tmp_path: Path) -> None:
    """`truncation_side` counts; without it, the direction that `tokenizer.json` names."""
    folder = copy_fixture("bert-mean", tmp_path)
    assert _read(folder).truncation is Truncation.END
    edit_json(folder / "tokenizer.json", truncation={"direction": "Left", "max_length": 32})
    read = _read(folder)
    assert read.truncation is Truncation.START
    assert read.origins["truncation"] == "tokenizer.json: truncation"
    edit_json(folder / "tokenizer_config.json", truncation_side="right")
    assert _read(folder).truncation is Truncation.END


POOLING = "1_Pooling/config.json"
SETTINGS = "sentence_bert_config.json"
EXTRAS = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": None}, "config.json: model_type must be"),
        ("config.json", {"model_type": 7}, "config.json: model_type must be a string"),
        ("config.json", {"hidden_size": 48}, "config.json: hidden_size is 48, but the Pooling"),
        ("config.json", {"pad_token_id": -1}, "config.json: pad_token_id must be a whole number"),
        (POOLING, {"include_prompt": "no"}, "include_prompt must be true or false"),
        (POOLING, {"word_embedding_dimension": 0}, "word_embedding_dimension must be"),
        (POOLING, {"word_embedding_dimension": None}, "word_embedding_dimension must be"),
        (POOLING, {"pooling_mode": "median"}, "pooling_mode must be one or several of cls"),
        (POOLING, {"pooling_mode": []}, "pooling_mode must be one or several of cls"),
        (POOLING, {"pooling_mode_mean_tokens": "yes"}, "pooling_mode_mean_tokens must be true"),
        (POOLING, {"pooling_mode_median": True}, "pooling_mode_median is not supported"),
        (SETTINGS, {"max_seq_length": "64"}, "max_seq_length must be a whole number"),
        (SETTINGS, {"max_seq_length": 0}, "max_seq_length must be a whole number of at least 1"),
        (SETTINGS, {"query_length": 32}, "query_length is not supported"),
        (SETTINGS, {"do_lower_case": 1}, "do_lower_case must be true or false"),
        (EXTRAS, {"prompts": ["query"]}, "prompts must be an object"),
        (EXTRAS, {"prompts": {"query": 1}}, "prompts.query must be a string"),
        (EXTRAS, {"default_prompt_name": "query"}, "default_prompt_name must be a key of prompts"),
        (EXTRAS, {"similarity_fn_name": "jaccard"}, "similarity_fn_name must be one of cosine"),
        (EXTRAS, {"model_type": "Encoder"}, "model_type 'Encoder' is not supported"),
        (EXTRAS, {"model_type": "CrossEncoder"}, "contradicts the Pooling module"),
        ("tokenizer_config.json", {"padding_side": "top"}, "padding_side must be left or right"),
        ("tokenizer_config.json", {"truncation_side": "top"}, "truncation_side must be left or"),
        ("tokenizer.json", {"truncation": {"direction": "\\u"}}, "direction must be Left or Right"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length must be a whole"),
    ],
)
def test_a_wrong_key_is_named(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """The error is one line with the file and the key."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / SETTINGS, max_seq_length=None)
    edit_json(folder / file, **changes)
    with pytest.raises(ModelError) as caught:
        _read(folder)
    assert message in str(caught.value)
    assert str(folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (_modules("Transformer", "Pooling", "CNN"), "[2].type 'CNN' is not supported"),
        (_modules("Transformer", "Dense"), "Dense needs a Pooling before it"),
        (_modules("Transformer", "LayerNorm"), "LayerNorm needs a Pooling before it"),
        (_modules("Transformer", "Pooling", "Normalize", "Dense"), "must come before Normalize"),
        (_modules("Transformer", "Whitening"), "[1].type 'Whitening' is not supported"),
        (_modules("Router"), "[0].type 'Router' is not supported"),
        (_modules("Pooling"), "[0].type 'Pooling' is out of place"),
        (_modules("Transformer", "Transformer"), "[1].type 'Transformer' is out of place"),
        (_modules("Transformer"), "has no Pooling module"),
        (_modules("Transformer", "Normalize", "Pooling"), "Normalize needs a Pooling before it"),
        (_modules("Transformer", "Pooling", "Pooling"), "Pooling must come once"),
        ([{"type": "a.Transformer", "path": "../other"}], "[0].path '../other' leads out of"),
        ([], "must hold a list of modules"),
        ({}, "must hold a list of modules"),
        (["Transformer"], "[0] must be an object"),
    ],
)
def test_modules_that_are_not_supported(tmp_path: Path, modules: Any, message: str) -> None:
    """The error names the module that is not supported."""
    folder = copy_fixture("bert-mean", tmp_path)
    dense = {"in_features": 32, "out_features": 8}
    for name, config in {
        "1_Dense": dense,
        "3_Dense": dense,
        "1_LayerNorm": {"dimension": 32},
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    for index in (1, 2):
        (folder / f"{index}_Pooling").mkdir(exist_ok=True)
        (folder / f"{index}_Pooling" / "config.json").write_text(
            (FIXTURES / "bert-mean" / POOLING).read_text()
        )
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError) as caught:
        _read(folder)
    assert f"{folder / 'modules.json'}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": "Bert"}, "architectures must be a list"),
        ({"architectures": ["BertModel"]}, "modules.json is missing"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"},
            "sbert_ce_default_activation_function must be torch's Sigmoid or Identity",
        ),
        (
            {"sentence_transformers": {"activation_fn": "own.Sigmoid"}},
            "activation_fn must be torch's Sigmoid or Identity",
        ),
    ],
)
def test_cross_encoders_that_are_not_supported(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A cross-encoder must have a known activation, and a list of architectures."""
    folder = copy_fixture("cross-bert", tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        _read(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json is missing"),
        (POOLING, "config.json is missing: it must say how"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, file: str, message: str) -> None:
    """The error names the missing file."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / file).unlink()
    with pytest.raises(ModelError) as caught:
        _read(folder)
    assert message in str(caught.value)
    assert str(folder / file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[]", "must contain a JSON object")]
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    """The error names the file that is not a JSON object."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        _read(folder)
    assert message in str(caught.value)
    assert str(folder / "config.json") in str(caught.value)


def test_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    """JSON may escape one character as two; only half of such a pair is an error."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "\U0001f600 "})
    assert rb"\ud83d\ude00" in (folder / "config_sentence_transformers.json").read_bytes()
    assert _read(folder).prompts == {"query": "\U0001f600 "}
