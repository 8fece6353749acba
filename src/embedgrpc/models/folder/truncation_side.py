"""Reads which end of a text that is too long the model drops."""

from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject, limit_bytes
from embedgrpc.models.files.model_file import read_file
from embedgrpc.models.kinds import Truncation

_SIDES = {"left": Truncation.START, "right": Truncation.END}
# The tokenizers library writes the side with a capital. Reading this file as JSON takes up to a
# second, so it is only done if it may name the left side.
_MAY_BE_LEFT = (b"Left", b"\\u")


def find_truncation(
    folder: Path, root: Path, tokenizer_config: JsonObject
) -> tuple[Truncation, JsonObject, str]:
    """Return the end that is cut, and the file and key that say so.

    Args:
        folder: The backbone's folder.
        root: The model's folder.
        tokenizer_config: `tokenizer_config.json`, which wins over `tokenizer.json`.

    Raises:
        ModelError: A file cannot be used, or names neither side.

    Source: transformers' `TokenizersBackend.__init__`.
    """
    key = "truncation_side"
    side = tokenizer_config.text(key, default="")
    if side:
        if side not in _SIDES:
            raise tokenizer_config.wrong(key, "left or right")
        return _SIDES[side], tokenizer_config, key
    path = folder / "tokenizer.json"
    if not path.exists():
        return Truncation.END, tokenizer_config, key
    content = read_file(path, root, limit_bytes=limit_bytes(path.name))
    if not any(sign in content for sign in _MAY_BE_LEFT):
        return Truncation.END, tokenizer_config, key
    tokenizer = JsonObject.read(path, root)
    truncation = JsonObject(path, tokenizer.table("truncation"))
    side = truncation.text("direction", default="Right").lower()
    if side not in _SIDES:
        raise tokenizer.wrong("truncation.direction", "Left or Right")
    return _SIDES[side], tokenizer, "truncation"
