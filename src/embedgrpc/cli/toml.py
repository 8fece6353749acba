"""Writes values as TOML, which the standard library only reads."""

import json
import re
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def write_value(value: Any) -> str:
    """Return a value of JSON, except null, as TOML has it on one line."""
    match value:
        case dict():
            pairs = [f"{_write_key(key)} = {write_value(one)}" for key, one in value.items()]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        case list():
            return f"[{', '.join(write_value(one) for one in value)}]"
        case str():
            # JSON's escapes are TOML's. JSON leaves DEL as it is, which TOML does not allow.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            return json.dumps(value)


def _write_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else write_value(key)
