import json
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.special_tokens import find_special_ids

WORDS = {"a": 0, "<s>": 1, "</s>": 2}


def write(folder: Path, *, vocab: Any, added: Any = (), config: Any = None) -> Path:
    """Write the files of a tokenizer."""
    tokenizer = {"model": {"vocab": vocab}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"cls_token": "<s>"} if config is None else config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def find(folder: Path) -> dict[str, int]:
    """Find the ids of two special tokens."""
    return dict(find_special_ids(folder, folder, ("cls_token", "eos_token")))


@pytest.mark.parametrize("vocab", [WORDS, [[word, -1.0] for word in WORDS]], ids=["ids", "scores"])
def test_ids_come_from_the_vocabulary(tmp_path: Path, vocab: Any) -> None:
    """Both forms of a vocabulary work; a token that no file names has no id."""
    assert find(write(tmp_path, vocab=vocab)) == {"cls_token": 1}


def test_the_first_file_counts_and_added_tokens_win(tmp_path: Path) -> None:
    """special_tokens_map.json adds tokens; added_tokens override the vocabulary."""
    write(tmp_path, vocab=WORDS, added=[{"content": "<s>", "id": 7}])
    tokens = {"cls_token": "a", "eos_token": {"content": "</s>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert find(tmp_path) == {"cls_token": 7, "eos_token": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab": ["a"]}, "model.vocab must be pairs of token and score"),
        ({"vocab": [[]]}, "model.vocab must be pairs of token and score"),
        ({"vocab": [[1, -1.0]]}, "model.vocab must be pairs of token and score"),
        ({"vocab": {"a": 0}}, "cls_token must be a token of tokenizer.json"),
        ({"vocab": WORDS, "config": {"cls_token": 1}}, "cls_token must be a token"),
        ({"vocab": WORDS, "config": {}}, "cls_token must be a token; no file names one"),
        ({"vocab": WORDS, "added": 5}, "added_tokens must be a list of tokens with their ids"),
        ({"vocab": WORDS, "added": ["<s>"]}, "added_tokens must be a list of tokens"),
        ({"vocab": WORDS, "added": [{"content": "<s>"}]}, "added_tokens must be a list of tokens"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """The error names the key that is wrong."""
    with pytest.raises(ModelError, match=message):
        find(write(tmp_path, **files))
