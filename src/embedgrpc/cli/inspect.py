"""`embedgrpc inspect`: prints a model's properties and the files that define them."""

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, add_model_flags, model_keys, read_configuration
from embedgrpc.cli.sources import find_model
from embedgrpc.models.errors import ModelError
from embedgrpc.server.telemetry import logs

# A longer value pushes its origin to the right.
_COLUMN_MAX = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Reads a model's files, and builds its graph as `serve` does. Prints each property with the"
        " file and key that define it. Exits with 2 if the model cannot be served."
    )
    parser.add_argument("source", metavar="[ID=]SOURCE", help="a model, as in --model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="only read the files, which does not find all that `serve` would refuse",
    )
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    add_model_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the model; return 0, or 2 if it or a setting cannot be used."""
    # Late, so that help need not wait for NumPy.
    from embedgrpc.cli.description import describe  # noqa: PLC0415 - see above

    settings = read_configuration(parsed).settings
    logs.configure_for_terminal(settings.log_level)
    try:
        model = find_model(settings, parsed.source, model_keys(parsed))
        described = list(describe(model, settings, may_build=not parsed.files_only))
    except ModelError as error:
        return report(error, code=2)
    if parsed.json:
        found = {
            name: {"value": value, "from": origin or None} for name, value, origin in described
        }
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    lines = [line for one in described for line in _as_lines(*one)]
    width = max(len(name) for name, _, _ in lines)
    column = min(_COLUMN_MAX, max(len(value) for _, value, origin in lines if origin))
    for name, value, origin in lines:
        print(f"{name:<{width}}  {value:<{column}}  {origin}".rstrip())
    return 0


def _as_lines(name: str, value: Any, origin: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, Mapping) and value:
        # Prompts are quoted, because spaces at their ends count.
        for key, text in value.items():
            yield f"{name} {key}", repr(text), origin
    elif isinstance(value, list | Mapping):
        yield name, "; ".join(str(one) for one in value) or "none", origin
    elif isinstance(value, bool):
        yield name, "yes" if value else "no", origin
    else:
        yield name, "none" if value in {"", None} else str(value), origin
