"""Shows names from requests in error messages. Names are not secret; texts are never shown."""

from collections.abc import Collection
from itertools import islice

_CHARACTERS_MAX = 64
_LISTED_MAX = 8


def show_name(name: str) -> str:
    """Return a name in quotes: at most 64 characters, unprintable ones escaped."""
    return f"'{_escape(name)}'"


def list_names(names: Collection[str]) -> str:
    """Return the first 8 names in one line, and how many more there are."""
    listed = ", ".join(map(_escape, islice(names, _LISTED_MAX))) or "none"
    more = len(names) - _LISTED_MAX
    return f"{listed} and {more} more" if more > 0 else listed


def _escape(name: str) -> str:
    shown = ""
    for character in name:
        escaped = repr(character)[1:-1]
        if len(shown) + len(escaped) > _CHARACTERS_MAX:
            return f"{shown}..."
        shown += escaped
    return shown
