"""Reads the ids of a tokenizer's special tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file, read_tokenizer

# The first file that names a token counts.
_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def find_special_ids(folder: Path, root: Path, keys: Sequence[str]) -> Mapping[str, int]:
    """Return the ids of special tokens.

    Args:
        folder: The backbone's folder, with a tokenizer.
        root: The model's folder.
        keys: The tokens' roles, such as `cls_token`.

    Returns:
        The id for each key that has a token.

    Raises:
        ModelError: No file names any of them, a file cannot be used, or a token is not in the
            vocabulary.
    """
    tables = [JsonObject.read_if_present(folder / name, root) for name in _FILES]
    found: dict[str, int] = {}
    vocabulary: Mapping[str, int] | None = None
    for key in keys:
        for table in tables:
            token = read_token(table, key)
            if token is None:
                continue
            if vocabulary is None:
                vocabulary = read_vocabulary(folder, root)
            if token not in vocabulary:
                raise table.wrong(key, f"a token of {find_tokenizer_file(folder).name}")
            found[key] = vocabulary[token]
            break
    if not found:
        raise tables[0].wrong(keys[0], "a token; no file names one")
    return found


def read_token(table: JsonObject, key: str) -> str | None:
    """Return the text of a token, or None if the key is absent.

    Raises:
        ModelError: The key holds something else.
    """
    token = table.values.get(key)
    # A token with properties is an object.
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise table.wrong(key, "a token")
    return content


def read_added_tokens(tokenizer: JsonObject) -> Mapping[str, int]:
    """Return the ids of the tokens that `tokenizer.json` adds to the vocabulary.

    Raises:
        ModelError: `added_tokens` holds something else.
    """
    added: dict[str, int] = {}
    tokens = tokenizer.values.get("added_tokens") or []
    for token in tokens if isinstance(tokens, list) else [tokens]:
        match token:
            case {"content": str(content), "id": int(token_id)}:
                added[content] = token_id
            case _:
                raise tokenizer.wrong("added_tokens", "a list of tokens with their ids")
    return added


def read_vocabulary(folder: Path, root: Path) -> Mapping[str, int]:
    """Return the ids of a tokenizer's tokens, added ones included.

    Raises:
        ModelError: The tokenizer's file cannot be used.
    """
    tokenizer = read_tokenizer(folder, root)
    model = JsonObject(path=tokenizer.path, values=tokenizer.table("model"))
    entries = model.values.get("vocab")
    if isinstance(entries, list):
        # A unigram model lists pairs of token and score in the order of the ids.
        vocabulary = {_first(model, entry): index for index, entry in enumerate(entries)}
    else:
        vocabulary = dict(model.table("vocab"))
    return {**vocabulary, **read_added_tokens(tokenizer)}


def _first(model: JsonObject, entry: object) -> str:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
        raise model.wrong("model.vocab", "pairs of token and score")
    return entry[0]
