"""`embedgrpc check`: resolves the settings and loads nothing."""

import argparse
import json
import sys
from typing import Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.machine.memory import available_memory_bytes
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.settings import MIB
from embedgrpc.server.settings.worst_case import client_bytes, memory_warning


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="print the settings and where each came from",
        description="Resolves the settings as `serve` would, prints each with where it came from,"
        " and loads nothing. Exits with 1 when they are wrong.",
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints the settings; returns 0, or 1 when they are wrong."""
    try:
        configuration = read_configuration(parsed)
    except SettingsError as error:
        return refuse(error, code=1)
    for setting, value in configuration.settings.model_dump(mode="json").items():
        print(f"{setting} = {json.dumps(value)}  # {configuration.origins[setting]}")
    for name, suggestion in configuration.unknown_variables.items():
        sys.stderr.write(f"embedgrpc: variable {name} sets nothing{suggestion}\n")
    worst = client_bytes(configuration.settings)
    sys.stderr.write(
        f"embedgrpc: clients can make the server hold {worst // MIB} MiB at most, beside the"
        " models\n"
    )
    if warning := memory_warning(configuration.settings, available_memory_bytes()):
        sys.stderr.write(f"embedgrpc: {warning}\n")
    return 0
