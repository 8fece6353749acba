"""Finds the ids of the tokens that a tokenizer's files give a special meaning."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject

# Later files only add what the earlier ones do not say.
_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def find_special_ids(folder: Path, root: Path, keys: Sequence[str]) -> Mapping[str, int]:
    """Finds the ids of special tokens.

    Args:
        folder: Of the backbone, with a `tokenizer.json`.
        root: The model's folder.
        keys: Names of the tokens' meanings, such as `cls_token`.

    Returns:
        The id for each key that a file names a token for.

    Raises:
        ModelError: No file names any of them, a file cannot be used, or a token that is named
            is not in the vocabulary.
    """
    tables = [JsonObject.read_if_present(folder / name, root) for name in _FILES]
    found: dict[str, int] = {}
    vocabulary: Mapping[str, int] | None = None
    for key in keys:
        for table in tables:
            token = _read_token(table, key)
            if token is None:
                continue
            if vocabulary is None:
                vocabulary = _read_vocabulary(folder, root)
            if token not in vocabulary:
                raise table.wrong(key, "a token of tokenizer.json")
            found[key] = vocabulary[token]
            break
    if not found:
        raise tables[0].wrong(keys[0], "the token of this meaning, which no file says")
    return found


def _read_token(table: JsonObject, key: str) -> str | None:
    token = table.values.get(key)
    # A token is written out with its properties where it has any.
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise table.wrong(key, "a token")
    return content


def _read_vocabulary(folder: Path, root: Path) -> Mapping[str, int]:
    tokenizer = JsonObject.read(folder / "tokenizer.json", root)
    model = JsonObject(path=tokenizer.path, values=tokenizer.table("model"))
    entries = model.values.get("vocab")
    if isinstance(entries, list):
        # A unigram model's: pairs of token and score, in the order of the ids.
        vocabulary = {_first(model, entry): index for index, entry in enumerate(entries)}
    else:
        vocabulary = dict(model.table("vocab"))
    for added in tokenizer.values.get("added_tokens") or ():
        match added:
            case {"content": str(content), "id": int(token_id)}:
                vocabulary[content] = token_id
            case _:
                raise tokenizer.wrong("added_tokens", "a list of tokens with their ids")
    return vocabulary


def _first(model: JsonObject, entry: object) -> str:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
        raise model.wrong("model.vocab", "pairs of token and score")
    return entry[0]
