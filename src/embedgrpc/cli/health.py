"""`embedgrpc health`: asks the server that has these settings for its health."""

import argparse
from typing import Any

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.own_tls import NoOwnTlsError, own_tls

_SETTINGS = (
    "address",
    "tls_certificate_file",
    "tls_key_file",
    "tls_client_ca_file",
    "health_address",
)
# Hosts that stand for all addresses of this machine, and the one to call instead.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - replaced


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Asks the server that runs on this machine with the same settings for the health of its"
        " services, and prints the statuses. Exits with 0 only if all are SERVING, and with 2 if"
        " the settings are wrong. Meant for the health check of a container."
    )
    parser.add_argument("services", nargs="*", help="default: the whole server")
    parser.add_argument("--any", action="store_true", help="exit with 0 if any is SERVING")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="how long to wait for each answer (default: %(default)s)",
    )
    add_flags(parser, _SETTINGS)


def run(parsed: argparse.Namespace) -> int:
    """Print the statuses; return 0, 1 or 2 as the description says."""
    settings = read_configuration(parsed).settings
    # Late, so that help and wrong settings need not wait for gRPC.
    from embedgrpc.client import Client, EmbedGrpcError, HealthStatus  # noqa: PLC0415 - see above

    # The health listener answers even if clients exhaust the limits of the other one.
    try:
        target = target_of(settings.health_address or settings.address)
        tls: dict[str, Any] = {} if settings.health_address else own_tls(settings)
        with Client(target, timeout_s=parsed.timeout_s, **tls) as client:
            statuses = [client.health(service) for service in parsed.services or [""]]
    except NoOwnTlsError as error:
        return report(f"{error}; set health_address (--health-address)", code=2)
    except (EmbedGrpcError, ValueError) as error:
        return report(error, code=1)
    print(*statuses, sep="\n")
    serving = [status is HealthStatus.SERVING for status in statuses]
    return 0 if (any(serving) if parsed.any else all(serving)) else 1


def target_of(address: str) -> str:
    """Return the address at which this machine reaches a server that listens at an address."""
    if address.startswith("unix:"):
        return address
    host, _, port = address.rpartition(":")
    return f"{_WILDCARDS.get(host, host)}:{port}"
