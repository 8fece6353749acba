"""Folders with `vocab.txt` and no `tokenizer.json`."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.folder.special_tokens import find_special_ids
from embedgrpc.models.folder.tokenizer_file import (
    as_tokenizer_json,
    find_tokenizer_file,
    read_tokenizer,
)
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.added_tokens import read_tokenizer_settings
from embedgrpc.models.tokenizers.rebuilt import complete
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import copy_fixture, edit_json, expected

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "reference_vocabularies.json").read_text("utf-8")
)


def _write(case: dict[str, Any], folder: Path) -> None:
    """Write the files of a case as its maker did."""
    end = case.get("end", "\n")
    text = (end or "\n").join(case["vocab"]) + end
    (folder / "vocab.txt").write_bytes(text.encode())
    files = {
        "config.json": {"model_type": case.get("model_type", "bert")},
        "tokenizer_config.json": case.get("config", {}) | {"tokenizer_class": case["class"]},
        "special_tokens_map.json": case.get("map", {}),
        "added_tokens.json": case.get("added", {}),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize("number", range(len(REFERENCE["cases"])))
def test_tokens_are_those_of_the_reference(tmp_path: Path, number: int) -> None:
    """Classes of WordPiece, their settings, and lines that are not plain tokens."""
    case = REFERENCE["cases"][number]
    _write(case, tmp_path)
    path = tmp_path / "vocab.txt"
    own = tokenizers.Tokenizer.from_buffer(as_tokenizer_json(path, path.read_bytes()))
    settings = read_tokenizer_settings(tmp_path, tmp_path)
    completed = complete(own, read_tokenizer(tmp_path, tmp_path), settings)
    tokenizer = completed.tokenizer
    assert [tokenizer.encode(text).ids for text in REFERENCE["texts"]] == case["ids"]
    for pair, (ids, types) in zip(REFERENCE["pairs"], case["pairs"], strict=True):
        encoded = tokenizer.encode(*pair)
        assert encoded.ids == ids
        assert completed.has_types == (types is not None)
        assert types in (None, encoded.type_ids)


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls", "cross-bert"])
def test_a_fixture_needs_no_other_file(tmp_path: Path, name: str) -> None:
    """The tokens are those of the reference, which gives the same ones for either file."""
    folder = copy_fixture(name, tmp_path, leave_out=["tokenizer.json"])
    reference = expected(name)
    properties = read(resolve(str(folder)))
    tokenizer = Tokenizer.load(properties)
    options: Any = {"max_tokens": properties.max_tokens, "truncation": properties.truncation}
    if "pairs" in reference:
        queries, documents = (
            tokenizer.encode(list(side)) for side in zip(*reference["pairs"], strict=True)
        )
        sequences = [
            tokenizer.build_pair(*pair, **options) for pair in zip(queries, documents, strict=True)
        ]
    else:
        ids = tokenizer.encode(reference["texts"])
        sequences = [tokenizer.build_sequence(one, **options) for one in ids]
    assert [one.input_ids.tolist() for one in sequences] == reference["token_ids"]


def test_the_vocabulary_counts(tmp_path: Path) -> None:
    """It is part of the fingerprint, gives the ids of special tokens, and yields to the file."""
    folder = copy_fixture("bert-mean", tmp_path)
    assert find_tokenizer_file(folder).name == "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    assert find_tokenizer_file(folder).name == "vocab.txt"
    plain = find_special_ids(folder, folder, ["pad_token"])["pad_token"]
    edit_json(folder / "config.json", pad_token_id=None)
    assert read(resolve(str(folder))).pad_token_id == plain
    before = _fingerprint(folder, tmp_path)
    path = folder / "vocab.txt"
    path.write_text(path.read_text("utf-8").replace("\nthe\n", "\ntheir\n"), "utf-8")
    assert _fingerprint(folder, tmp_path) != before


def _fingerprint(folder: Path, cache_dir: Path) -> str:
    files = resolve(str(folder))
    return identify(files, read(files), cache_dir=cache_dir / "cache").content_hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vocab\.txt contains no token"),
        (b"\xff\xfe\n", r"vocab\.txt is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"x" * (9 << 20), "more than the limit"),
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """The error names the file and the fault."""
    folder = copy_fixture("bert-mean", tmp_path, leave_out=["tokenizer.json"])
    (folder / "vocab.txt").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(read(resolve(str(folder))))


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "RobertaTokenizer"])
def test_another_class_needs_more_than_a_vocabulary(tmp_path: Path, name: str) -> None:
    """The error has the command that makes the file."""
    folder = copy_fixture("bert-mean", tmp_path, leave_out=["tokenizer.json"])
    edit_json(folder / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing; .* python -c "):
        Tokenizer.load(read(resolve(str(folder))))
