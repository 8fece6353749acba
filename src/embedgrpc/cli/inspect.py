"""`embedgrpc inspect`: prints what a model is, and which file says so."""

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.cli.sources import find_model
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.configuration import SettingsError

# Longer values push what stands beside them to the right.
_COLUMN_MAX = 48


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="print what a model is and which file says so",
        description="Reads a model's files, without running it, and prints what was found, each"
        " with the file and key that says it. Exits with 2 when the model cannot be served.",
    )
    parser.add_argument("source", metavar="[ID=]SOURCE", help="a model, as in --model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints the model; returns 0, or 2 when it or a setting cannot be used."""
    # Late, so that help does not wait for it.
    from embedgrpc.cli.description import describe  # noqa: PLC0415 - see above

    try:
        settings = read_configuration(parsed).settings
        rows = list(describe(find_model(settings, parsed.source), settings))
    except (SettingsError, ModelError) as error:
        return refuse(error, code=2)
    if parsed.json:
        described = {name: {"value": value, "from": origin or None} for name, value, origin in rows}
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    lines = [line for row in rows for line in _as_lines(*row)]
    width = max(len(name) for name, _, _ in lines)
    column = min(_COLUMN_MAX, max(len(value) for _, value, origin in lines if origin))
    for name, value, origin in lines:
        print(f"{name:<{width}}  {value:<{column}}  {origin}".rstrip())
    return 0


def _as_lines(name: str, value: Any, origin: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, Mapping) and value:
        # Prompts: blanks at their ends count.
        for key, text in value.items():
            yield f"{name} {key}", repr(text), origin
    elif isinstance(value, list | Mapping):
        yield name, "; ".join(str(one) for one in value) or "none", origin
    elif isinstance(value, bool):
        yield name, "yes" if value else "no", origin
    else:
        yield name, "none" if value in {"", None} else str(value), origin
