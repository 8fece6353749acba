"""The README's tables of settings, made from the settings themselves.

uv run python -m tests.settings_table     writes them into README.md
"""

from pathlib import Path

from embedgrpc.server.settings.configuration import flag_name
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def render(readme: str) -> str:
    """Returns the README with both tables as they must be."""
    server = [
        (flag_name(setting), info.default, info.description)
        for setting, info in Settings.model_fields.items()
    ]
    model = [
        (setting, info.default, info.description)
        for setting, info in ModelSettings.model_fields.items()
    ]
    return _replace(_replace(readme, "settings", server), "model settings", model)


def _replace(readme: str, name: str, rows: list[tuple[str, object, str | None]]) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    table = ["| name | default | |", "|---|---|---|"]
    table += [f"| `{key}` | {_default(value)} | {what} |" for key, value, what in rows]
    return before + begin + "\n".join(table) + "\n" + end + after


def _default(value: object) -> str:
    nothing = value is None or value in ((), "", {}) or "Undefined" in repr(value)
    return "" if nothing else f"`{value}`"


if __name__ == "__main__":
    README.write_text(render(README.read_text("utf-8")), "utf-8")
