"""`embedgrpc verify`: runs a model, and compares it with the reference or with another source."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.telemetry import logs

_STATES = {True: "ok", False: "WRONG", None: "-"}


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="run a model and compare it with the reference",
        description="Checks a model's files, runs it on texts of many kinds, and compares what it"
        " gives with sentence-transformers where that is installed, or with another source. Exits"
        " with 0 when all is well, with 1 when it is not, and with 2 when a source or a setting"
        " cannot be used.",
    )
    parser.add_argument("source", metavar="[ID=]SOURCE", help="a model, as in --model")
    parser.add_argument("--against", metavar="SOURCE", help="another model to compare with")
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="texts to run, one a line (default: 24 of ours)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="NUMBER",
        help="how far a number may be from that of the other (default: %(default)s)",
    )
    add_flags(
        parser,
        ("cache_dir", "device", "intra_op_threads", "load_timeout_s", "load_memory_bytes"),
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints each check; returns 0, 1 or 2 as the description says."""
    try:
        settings = read_configuration(parsed).settings
    except SettingsError as error:
        return refuse(error, code=2)
    logs.configure(settings.log_level, settings.log_format)
    # Late, as it loads ONNX Runtime.
    from embedgrpc.cli.verification import Verification  # noqa: PLC0415 - see above
    from embedgrpc.server.loading.loading import LOAD_ERRORS  # noqa: PLC0415 - see above

    verification = Verification(
        settings=settings,
        against=parsed.against or "",
        texts=parsed.texts,
        tolerance=parsed.tolerance,
    )
    well = True
    with ExitStack() as resources:
        try:
            for check in verification.checks(parsed.source, resources):
                well = well and check.well is not False
                print(f"{check.name:<20}{_STATES[check.well]:<7}{check.found}", flush=True)
        except LOAD_ERRORS as error:
            return refuse(error, code=2)
    return 0 if well else 1
