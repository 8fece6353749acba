"""`embedgrpc pull`: downloads models, so that they can be served without a network."""

import argparse

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, add_model_flags, model_keys, read_configuration
from embedgrpc.cli.sources import find_model
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry import logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Downloads models and builds their graphs into the cache. Prints a line for each: source,"
        " revision, folder and bytes, separated by tabs. Exits with 1 if a model cannot be"
        " prepared, and with 2 if the settings are wrong."
    )
    parser.epilog = (
        "A host without a network can then serve them: copy HF_HOME (~/.cache/huggingface) and the"
        " cache there, and set HF_HUB_OFFLINE=1."
    )
    parser.add_argument("sources", nargs="+", metavar="[ID=]SOURCE", help="a model, as in --model")
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    add_model_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Pull each model; return 0, 1 or 2 as the description says."""
    settings = read_configuration(parsed).settings
    logs.configure_for_terminal(settings.log_level)
    code = 0
    for source in parsed.sources:
        try:
            model = find_model(settings, source, model_keys(parsed))
            print(_pull(source, model, settings), flush=True)
        except ModelError as error:
            code = report(error, code=1)
    return code


def _pull(source: str, model: ModelSettings, settings: Settings) -> str:
    # Late, so that help and wrong settings need not wait for NumPy.
    from embedgrpc.cli.validated import prepare_validated  # noqa: PLC0415 - see above
    from embedgrpc.models.sources.source import resolve  # noqa: PLC0415 - see above

    files = resolve(model.source, model.adapter)
    prepare_validated(files, model, settings)
    size = sum(path.stat().st_size for path in files.folder.rglob("*") if path.is_file())
    return "\t".join((source, files.revision or "-", str(files.folder), str(size)))
