"""Reads the JSON files of a model folder, naming file and key of what is wrong."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.lfs import refuse_pointer
from embedgrpc.models.files.model_file import read_file

# The most bytes of each file. The largest of real models: a tokenizer of 34 MB, an index of 9 MB,
# a configuration with 1 MB of labels. A tokenizer of 17 MB takes 0.1 s to parse.
_BYTES_MAX = 8 << 20
_BYTES_MAX_BY_NAME = {"modules.json": 1 << 20, "tokenizer.json": 128 << 20}
_INDEX_SUFFIX = ".index.json"
_INDEX_BYTES_MAX = 16 << 20

# The most that a configuration may ask for, far beyond any real model: a typo or a lie is refused
# before anything is made of it.
_LIMITS = {
    "num_hidden_layers": 1024,
    "n_layers": 1024,
    "num_attention_heads": 4096,
    "n_heads": 4096,
    "hidden_size": 262_144,
    "dim": 262_144,
    "n_embd": 262_144,
    "d_model": 262_144,
    "embedding_size": 262_144,
    "intermediate_size": 2_097_152,
    "hidden_dim": 2_097_152,
    "vocab_size": 16_777_216,
    "pad_token_id": 16_777_216,
    "max_position_embeddings": 16_777_216,
    "max_seq_length": 16_777_216,
    "type_vocab_size": 65_536,
    "num_labels": 65_536,
    "word_embedding_dimension": 16_777_216,
    "embedding_dimension": 16_777_216,
    "in_features": 2_097_152,
    "out_features": 2_097_152,
    "dimension": 2_097_152,
}
# Half a surrogate pair, written out or as it would be encoded if it could be; or UTF-16 or 32.
# Python takes one alone for text, which then fails wherever it is sent or logged.
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\0")
# Digits of a number that a message repeats.
_SHOWN_DIGITS = 20


def limit_bytes(name: str) -> int:
    """The most bytes that a JSON file of a model may have, by its name."""
    if name.endswith(_INDEX_SUFFIX):
        return _INDEX_BYTES_MAX
    return _BYTES_MAX_BY_NAME.get(name, _BYTES_MAX)


def read_json(path: Path, root: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        root: The model's folder, out of which nothing is read.

    Returns:
        What it holds.

    Raises:
        ModelError: It cannot be read, is too large, or is no JSON.
    """
    content = read_file(path, root, limit_bytes=limit_bytes(path.name))
    refuse_pointer(path, content)
    try:
        values = json.loads(content)
        if _HALF_CHARACTER.search(content):
            # Fails where a half has no other half.
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{path} holds text that is no Unicode: half a surrogate pair") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply") from error
    return values


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The object of a JSON file; a key that is null counts as absent.

    Attributes:
        path: The file, to be named in messages.
        values: Its keys.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, root: Path) -> "JsonObject":
        """Reads the file.

        Args:
            path: The file.
            root: The model's folder, out of which nothing is read.

        Raises:
            ModelError: It cannot be read, is no JSON, or holds something else than an object.
        """
        values = read_json(path, root)
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object")
        return cls(path=path, values=values)

    @classmethod
    def read_if_present(cls, path: Path, root: Path) -> "JsonObject":
        """Reads the file, or takes it as empty where there is none.

        Args:
            path: The file.
            root: The model's folder, out of which nothing is read.

        Raises:
            ModelError: It is there and cannot be used.
        """
        return cls.read(path, root) if path.exists() else cls(path=path, values={})

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean.

        Raises:
            ModelError: The key holds something else.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(self, key: str) -> int | None:
        """A whole number of at least 0, or None where the key is absent.

        Raises:
            ModelError: The key holds something else, or more than any real model has.
        """
        value = self.values.get(key)
        if value is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:
            raise self.wrong(key, "a whole number of at least 0")
        limit = _LIMITS.get(key)
        if limit is not None and value > limit:
            shown = str(value)
            if len(shown) > _SHOWN_DIGITS:
                shown = f"a number of {len(shown)} digits"
            raise self.wrong(key, f"at most {limit}, not {shown}")
        return int(value)

    def size(self, key: str) -> int:
        """A whole number of at least 1 that must be there.

        Raises:
            ModelError: The key is absent or holds something else.
        """
        value = self.count(key)
        if not value:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def text(self, key: str, *, default: str) -> str:
        """A string.

        Raises:
            ModelError: The key holds something else.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        """An object; empty where the key is absent.

        Raises:
            ModelError: The key holds something else.
        """
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def wrong(self, key: str, wanted: str) -> ModelError:
        """An error that says what a key must hold."""
        return ModelError(f"{self.path}: {key} must be {wanted}")
