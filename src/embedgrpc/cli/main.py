"""The command `embedgrpc`."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from embedgrpc.cli import check, inspect, pull, serve, triton_repo, verify
from embedgrpc.libraries.silence import send_nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    send_nothing()
    parser = argparse.ArgumentParser(
        prog="embedgrpc",
        description="Serves embeddings and reranking over gRPC.",
        epilog="Each flag is also a variable (EMBEDGRPC_MAX_INPUTS for --max-inputs) and a key of"
        " the configuration file (max_inputs). Flags win over variables, variables over the file.",
    )
    parser.add_argument("--version", action="version", version=f"embedgrpc {version('embedgrpc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (serve, check, pull, inspect, verify, triton_repo):
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
