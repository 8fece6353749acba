"""Reads the JSON files of a model folder, naming file and key of what is wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.lfs import check_no_pointer


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        ModelError: It cannot be read, or is no JSON.
    """
    check_no_pointer(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply") from error


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
    def read(cls, path: Path) -> "JsonObject":
        """Reads the file.

        Raises:
            ModelError: It cannot be read, is no JSON, or holds something else than an object.
        """
        values = read_json(path)
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object")
        return cls(path=path, values=values)

    @classmethod
    def read_if_present(cls, path: Path) -> "JsonObject":
        """Reads the file, or takes it as empty where there is none.

        Raises:
            ModelError: It is there and cannot be used.
        """
        return cls.read(path) if path.exists() else cls(path=path, values={})

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
            ModelError: The key holds something else.
        """
        value = self.values.get(key)
        if value is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:
            raise self.wrong(key, "a whole number of at least 0")
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
