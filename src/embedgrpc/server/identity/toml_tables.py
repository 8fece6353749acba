"""Reads the tables of a TOML file about callers."""

import tomllib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from embedgrpc.server.identity.rights import explain

Table = TypeVar("Table", bound=BaseModel)


def read_tables(content: bytes, key: str, kind: type[Table]) -> list[Table]:
    """Return the tables under the only key of a file.

    Raises:
        ValueError: It is not TOML, or a table is wrong. The message holds no value of the file.
    """
    try:
        found = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # Says what was expected and the place, and at most one character.
        raise ValueError(f"it is not TOML: {error}") from None
    except RecursionError:
        raise ValueError("it is not TOML: nested too deeply") from None
    for name in found:
        if name != key:
            raise ValueError(f"there is no key {name[:64]!r}; it takes [[{key}]] tables")
    tables = found.get(key)
    # `keys = []` says so on purpose. A file without the key may have been cut off.
    if not isinstance(tables, list):
        raise ValueError(f"it has no [[{key}]] tables")  # noqa: TRY004 - a bad file
    read = []
    for index, table in enumerate(tables):
        try:
            read.append(kind.model_validate(table))
        except ValidationError as error:
            raise ValueError(explain(error, kind, inside=f"{key}[{index}]")) from None
    return read
