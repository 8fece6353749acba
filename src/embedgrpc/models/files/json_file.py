"""Reads the JSON files of a model folder; errors name the file and the key."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.lfs import refuse_pointer
from embedgrpc.models.files.model_file import read_file

# Maximum bytes of a file. The largest of real models: a tokenizer of 34 MB, an index of 9 MB, a
# list of token weights with 4 MB, a configuration with 1 MB of labels. A tokenizer of 17 MB takes
# 0.1 s to parse.
_BYTES_MAX = 8 << 20
_BYTES_MAX_BY_NAME = {"modules.json": 1 << 20, "tokenizer.json": 128 << 20, "idf.json": 32 << 20}
_INDEX_SUFFIX = ".index.json"
_INDEX_BYTES_MAX = 16 << 20

# Maximum values, far above those of real models: a wrong value is refused before it is used.
_LIMITS = {
    "num_hidden_layers": 1024,
    "n_layers": 1024,
    "num_attention_heads": 4096,
    "n_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 65_536,
    "sliding_window": 16_777_216,
    "original_max_position_embeddings": 16_777_216,
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
# Half a surrogate pair, escaped or encoded like UTF-8; or a zero byte, as in UTF-16 and UTF-32.
# Python accepts half a pair as text, but such text can be neither sent nor logged.
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\0")
# A longer number is not shown in messages.
_SHOWN_DIGITS = 20

_Value = TypeVar("_Value")


def limit_bytes(name: str) -> int:
    """Return the maximum bytes of a JSON file by its name."""
    if name.endswith(_INDEX_SUFFIX):
        return _INDEX_BYTES_MAX
    return _BYTES_MAX_BY_NAME.get(name, _BYTES_MAX)


def read_json(path: Path, root: Path) -> Any:
    """Read a JSON file in the model folder `root`.

    Raises:
        ModelError: It cannot be read, is too large, is outside of `root`, or is not JSON.
    """
    content = read_file(path, root, limit_bytes=limit_bytes(path.name))
    refuse_pointer(path, content)
    try:
        values = json.loads(content)
        if _HALF_CHARACTER.search(content):
            # Fails for half a pair.
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{path} contains half a surrogate pair, which is not text") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply") from error
    return values


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The object of a JSON file; a null value counts as absent."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, root: Path) -> "JsonObject":
        """Read a JSON object; see `read_json`.

        Raises:
            ModelError: The file cannot be used, or is not an object.
        """
        values = read_json(path, root)
        if not isinstance(values, dict):
            raise ModelError(f"{path} must contain a JSON object")
        return cls(path=path, values=values)

    @classmethod
    def read_if_present(cls, path: Path, root: Path) -> "JsonObject":
        """Read a JSON object; a missing file is an empty object.

        Raises:
            ModelError: The file cannot be used, or is not an object.
        """
        return cls.read(path, root) if path.exists() else cls(path=path, values={})

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean.

        Raises:
            ModelError: The value is something else.
        """
        return self._get(key, bool, "true or false", default)

    def count(self, key: str) -> int | None:
        """Return a whole number of at least 0, or None if the key is absent.

        Raises:
            ModelError: The value is something else, or far above that of real models.
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
        """Return a whole number of at least 1.

        Raises:
            ModelError: The key is absent, or its value is something else.
        """
        value = self.count(key)
        if not value:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def number(self, key: str, *, default: float) -> float:
        """Return a finite number.

        Raises:
            ModelError: The value is something else.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(key, "a finite number")
        return number

    def text(self, key: str, *, default: str) -> str:
        """Return a string.

        Raises:
            ModelError: The value is something else.
        """
        return self._get(key, str, "a string", default)

    def table(self, key: str) -> Mapping[str, Any]:
        """Return an object; empty if the key is absent.

        Raises:
            ModelError: The value is something else.
        """
        return self._get(key, dict, "an object", {})

    def _get(self, key: str, kind: type[_Value], wanted: str, default: _Value) -> _Value:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self.wrong(key, wanted)
        return value

    def wrong(self, key: str, wanted: str) -> ModelError:
        """Return the error for a wrong value."""
        return ModelError(f"{self.path}: {key} must be {wanted}")
