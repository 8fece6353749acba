"""The commands of `embedgrpc`."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from embedgrpc.cli import check, health, inspect, pull, serve, triton_repo, verify


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="embedgrpc",
        description="Serves embeddings and reranking over gRPC.",
        epilog="Each flag is also a variable (EMBEDGRPC_MAX_INPUTS for --max-inputs) and a key of"
        " the configuration file (max_inputs). Flags win over variables, variables over the file.",
    )
    parser.add_argument("--version", action="version", version=f"embedgrpc {version('embedgrpc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (serve, check, health, pull, inspect, verify, triton_repo):
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code
