"""`embedgrpc pull`: brings models to this machine, so that they can be served without network."""

import argparse
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.cli.sources import find_model
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.settings import Settings


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "pull",
        allow_abbrev=False,
        help="download models and build their graphs",
        description="Downloads models and builds their graphs into the cache, and prints a line"
        " for each: source, revision, folder and bytes, separated by tabs. Exits with 1 when one"
        " of them cannot be had, and with 2 when the settings are wrong.",
        epilog="A host without network then serves them: copy HF_HOME (~/.cache/huggingface) and"
        " the cache there, and set HF_HUB_OFFLINE=1.",
    )
    parser.add_argument("sources", nargs="+", metavar="[ID=]SOURCE", help="a model, as in --model")
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Brings each model that can be had; returns 0, 1 or 2 as the description says."""
    try:
        settings = read_configuration(parsed).settings
    except SettingsError as error:
        return refuse(error, code=2)
    code = 0
    for source in parsed.sources:
        try:
            print(_pull(source, settings), flush=True)
        except ModelError as error:
            code = refuse(error, code=1)
    return code


def _pull(source: str, settings: Settings) -> str:
    # Late, so that help and wrong settings do not wait for it.
    from embedgrpc.cli.validated import prepare_validated  # noqa: PLC0415 - see above
    from embedgrpc.models.sources.source import resolve  # noqa: PLC0415 - see above

    model = find_model(settings, source)
    files = resolve(model.source)
    prepare_validated(files, model, settings)
    size = sum(path.stat().st_size for path in files.folder.rglob("*") if path.is_file())
    return "\t".join((source, files.revision or "-", str(files.folder), str(size)))
