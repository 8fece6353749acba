"""The README's table of settings, made from the settings themselves.

uv run python -m tests.settings_table     writes it into README.md
"""

from pathlib import Path

from embedgrpc.server.configuration import flag_name
from embedgrpc.server.settings import Settings

README = Path(__file__).parent.parent / "README.md"
_BEGIN, _END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def split(readme: str) -> tuple[str, str, str]:
    """Splits the README into what comes before the table, the table, and the rest."""
    before, _, rest = readme.partition(_BEGIN)
    table, _, after = rest.partition(_END)
    return before + _BEGIN, table, _END + after


def render() -> str:
    """Returns the table: flag, default, description."""
    rows = ["| flag | default | |", "|---|---|---|"]
    for setting, info in Settings.model_fields.items():
        default = f"`{info.default}`" if info.default != () else ""
        rows.append(f"| `{flag_name(setting)}` | {default} | {info.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    before, _, after = split(README.read_text("utf-8"))
    README.write_text(before + render() + after, "utf-8")
