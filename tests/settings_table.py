"""The tables of docs/configuration.md, generated from the settings.

uv run python -m tests.settings_table     writes them into the file
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from embedgrpc.server.settings.configuration import flag_name
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings, settings_by_group

DOCUMENT = Path(__file__).parent.parent / "docs/configuration.md"


def render(document: str) -> str:
    """Return the document with all tables up to date."""
    for title, names in settings_by_group().items():
        fields = {flag_name(name): Settings.model_fields[name] for name in names}
        document = _replace(document, title, fields)
    return _replace(document, "Keys of a model", ModelSettings.model_fields)


def _replace(document: str, title: str, fields: Mapping[str, FieldInfo]) -> str:
    begin, end = f"<!-- {title}: begin -->\n", f"<!-- {title}: end -->"
    before, found, rest = document.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{DOCUMENT.name} has no place for the table {title!r}")
    table = ["| name | default | |", "|---|---|---|"]
    table += [
        f"| `{name}` | {_default(info.default)} | {info.description} |"
        for name, info in fields.items()
    ]
    return before + begin + "\n".join(table) + "\n" + rest[rest.index(end) :]


def _default(value: object) -> str:
    is_empty = value is None or value in ((), "", {}) or "Undefined" in repr(value)
    return "" if is_empty else f"`{value}`"


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text("utf-8")), "utf-8")
