"""The tokens of tokenizers that the reference completes or rebuilds."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.properties import read
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.added_tokens import read_tokenizer_settings
from embedgrpc.models.tokenizers.rebuilt import complete
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES, copy_fixture, edit_json

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "reference_tokens.json").read_text("utf-8")
)
FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _load(folder: Path) -> Tokenizer:
    return Tokenizer.load(read(resolve(str(folder))))


def _write(case: dict[str, Any], folder: Path) -> None:
    """Write the files of a case: those of a fixture with changes."""
    changes = dict(case["tokenizer.json"])
    specials = changes.pop("specials", None)
    name = "xlmr-metaspace" if specials else case["fixture"]
    content = json.loads((FIXTURES / name / "tokenizer.json").read_text("utf-8")) | changes
    if specials:
        words = content["model"]["vocab"][4:]
        content["model"]["vocab"] = [[token, 0.0] for token in specials] + words
        content["model"]["unk_id"] = specials.index("<unk>")
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    for file in FILES:
        if file in case:
            (folder / file).write_text(json.dumps(case[file]), "utf-8")


@pytest.mark.parametrize("number", range(len(REFERENCE["cases"])))
def test_tokens_are_those_of_the_reference(tmp_path: Path, number: int) -> None:
    """Classes, settings and added tokens of all files are followed."""
    case = REFERENCE["cases"][number]
    _write(case, tmp_path)
    settings = read_tokenizer_settings(tmp_path, tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    content = JsonObject.read(tmp_path / "tokenizer.json", tmp_path)
    completed = complete(tokenizer, content, settings)
    tokenizer = completed.tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = settings.split_special_tokens
    assert [tokenizer.encode(text).ids for text in REFERENCE["texts"]] == case["ids"]
    inputs = case.get("tokenizer_config.json", {}).get("model_input_names")
    has_types = "token_type_ids" in inputs if inputs else completed.has_types
    for pair, (ids, types) in zip(REFERENCE["pairs"], case["pairs"], strict=True):
        encoded = tokenizer.encode(*pair)
        assert encoded.ids == ids
        if types is None:
            assert not has_types
        else:
            assert has_types
            assert encoded.type_ids == types


def test_the_names_of_special_tokens_are_split(tmp_path: Path) -> None:
    """`split_special_tokens` makes the name of a special token plain characters."""
    folder = copy_fixture("bert-mean", tmp_path)
    whole = _load(folder).encode(["[MASK]"])[0]
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    assert len(_load(folder).encode(["[MASK]"])[0]) > len(whole)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "not supported"),
        ("tokenizer_config.json", {"tokenizer_class": "GPTNeoXTokenizerFast"}, "not supported"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9": "[Q]"}},
            "added_tokens_decoder.9 must be a token",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9": {"content": "[Q]", "strip": True}}},
            "added_tokens_decoder.9.strip must be a known property",
        ),
        ("tokenizer_config.json", {"extra_special_tokens": [7]}, "extra_special_tokens must be"),
        ("tokenizer_config.json", {"extra_special_tokens": ["[Q]"]}, "id 1200, but vocab_size"),
        ("added_tokens.json", {"[Q]": "7"}, r"\[Q\] must be the token's id"),
    ],
)
def test_what_is_no_token_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """The error names the file and the key."""
    folder = copy_fixture("bert-mean", tmp_path)
    if not (folder / file).exists():
        (folder / file).write_text("{}", "utf-8")
    edit_json(folder / file, **changes)
    with pytest.raises(ModelError, match=message):
        _load(folder)
