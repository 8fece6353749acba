"""`embedgrpc health`: asks the server that has these settings how it is."""

import argparse
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.settings import Settings

_ADDRESSES = ("address", "health_address")
# Hosts that stand for every address of this machine, and the one to call in their place.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - to be replaced


def add_parser(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "health",
        allow_abbrev=False,
        help="ask the server on this machine how it is",
        description="Asks the server that runs on this machine with the same settings how services"
        " are, and prints the answers. Exits with 0 only when they are SERVING, with 2 when the"
        " settings are wrong. For the health check of a container.",
    )
    parser.add_argument("services", nargs="*", help="the whole server when left out")
    parser.add_argument("--any", action="store_true", help="one that is SERVING is enough")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="how long to wait for each answer (default: %(default)s)",
    )
    add_flags(parser, _ADDRESSES)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the statuses; return 0, 1 or 2 as the description says."""
    try:
        settings = read_configuration(parsed).settings
    except SettingsError as error:
        return refuse(error, code=2)
    # Late, so that help and wrong settings do not wait for it.
    from embedgrpc.client import Client, EmbedGrpcError, HealthStatus  # noqa: PLC0415 - see above

    try:
        with Client(target_of(settings), timeout_s=parsed.timeout_s) as client:
            statuses = [client.health(service) for service in parsed.services or [""]]
    except (EmbedGrpcError, ValueError) as error:
        return refuse(error, code=1)
    print(*statuses, sep="\n")
    serving = [status is HealthStatus.SERVING for status in statuses]
    return 0 if (any(serving) if parsed.any else all(serving)) else 1


def target_of(settings: Settings) -> str:
    """Tell where a server with these settings answers health checks from this machine."""
    # The listener for health alone answers while clients use up the other one.
    address = settings.health_address or settings.address
    if address.startswith("unix:"):
        return address
    host, _, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"
