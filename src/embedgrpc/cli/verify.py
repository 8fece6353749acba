"""`embedgrpc verify`: runs a model and compares it with the reference or with another source."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, add_model_flags, model_keys, read_configuration
from embedgrpc.cli.sources import find_model
from embedgrpc.server.telemetry import logs

_SETTINGS = ("cache_dir", "device", "intra_op_threads", "load_timeout_s", "load_memory_bytes")
_VERDICTS = {True: "ok", False: "WRONG", None: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Checks a model's files, runs it on texts of many kinds, and compares the results with"
        " sentence-transformers, if that is installed, or with another source. Exits with 0 if all"
        " checks pass, with 1 if one fails, and with 2 if a source or a setting cannot be used."
    )
    parser.add_argument("source", metavar="[ID=]SOURCE", help="a model, as in --model")
    parser.add_argument("--against", metavar="SOURCE", help="another model to compare with")
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="texts to run, one a line (default: 24 built in)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="NUMBER",
        help="largest difference between two numbers that passes (default: %(default)s)",
    )
    add_flags(parser, _SETTINGS)
    add_model_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print each check; return 0, 1 or 2 as the description says."""
    settings = read_configuration(parsed).settings
    logs.configure(settings.log_level, settings.log_format)
    # Late, because they load ONNX Runtime.
    from embedgrpc.cli.verification import Verification  # noqa: PLC0415 - see above
    from embedgrpc.server.loading.loading import LOAD_ERRORS  # noqa: PLC0415 - see above

    passed = True
    with ExitStack() as resources:
        try:
            verification = Verification(
                settings=settings,
                model=find_model(settings, parsed.source, model_keys(parsed)),
                against=find_model(settings, parsed.against, {}) if parsed.against else None,
                texts=parsed.texts,
                tolerance=parsed.tolerance,
            )
            for check in verification.checks(resources):
                passed = passed and check.passed is not False
                print(f"{check.name:<19} {_VERDICTS[check.passed]:<7}{check.found}", flush=True)
        except LOAD_ERRORS as error:
            return report(error, code=2)
    return 0 if passed else 1
