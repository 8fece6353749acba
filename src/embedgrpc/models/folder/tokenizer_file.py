"""Finds the file that a tokenizer is loaded from, and reads it as `tokenizer.json`.

Older folders have only `vocab.txt`: one token a line, in the order of the ids. Classes like
`BertTokenizer` need nothing else.
"""

import json
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject, limit_bytes
from embedgrpc.models.files.lfs import refuse_pointer
from embedgrpc.models.files.model_file import read_file
from embedgrpc.models.sources.config_files import TOKENIZER_NAME, VOCABULARY_NAME

# What the tokenizers library cuts from the end of a line: Unicode's White_Space.
_BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def find_tokenizer_file(folder: Path) -> Path:
    """Return `vocab.txt` if the folder has it and no `tokenizer.json`, otherwise the latter."""
    path, vocabulary = folder / TOKENIZER_NAME, folder / VOCABULARY_NAME
    # A link that leads nowhere is a fault, and not a missing file.
    missing = not path.exists() and not path.is_symlink()
    return vocabulary if missing and vocabulary.exists() else path


def read_tokenizer_file(path: Path, root: Path) -> bytes:
    """Return the content of the file that `find_tokenizer_file` found.

    Raises:
        ModelError: It is missing, cannot be read, is too large, or is outside of `root`.
    """
    content = read_file(path, root, limit_bytes=limit_bytes(path.name))
    refuse_pointer(path, content)
    return content


def as_tokenizer_json(path: Path, content: bytes) -> bytes:
    """Return the content as that of a `tokenizer.json`, which it may be already.

    Raises:
        ModelError: The vocabulary is empty or not UTF-8.

    Source: `WordPiece.read_file` of the tokenizers library.
    """
    if path.name != VOCABULARY_NAME:
        return content
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise ModelError(f"{path} contains no token")
    # A token that is named twice has its last place.
    vocabulary = {line.rstrip(_BLANKS): index for index, line in enumerate(lines)}
    model = {
        "type": "WordPiece",
        "vocab": vocabulary,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


def read_tokenizer(folder: Path, root: Path) -> JsonObject:
    """Read the file of a tokenizer in the backbone's folder as a JSON object.

    Raises:
        ModelError: The file cannot be used.
    """
    path = find_tokenizer_file(folder)
    if path.name != VOCABULARY_NAME:
        return JsonObject.read(path, root)
    return JsonObject(path, json.loads(as_tokenizer_json(path, read_tokenizer_file(path, root))))
