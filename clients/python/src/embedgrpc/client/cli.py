"""The command `embedgrpc-client`.

Exit codes: 0; 1 after a failure, with one line on standard error; 2 for wrong usage; 130 after
Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from embedgrpc.client.cli_arguments import parse_arguments
from embedgrpc.client.defaults import DEFAULT_TARGET

_INTERRUPTED: Final = 130  # as a shell reports Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        SystemExit: The arguments are wrong (2), or ask for help or the version (0).
    """
    try:
        target = os.environ.get("EMBEDGRPC_TARGET") or DEFAULT_TARGET
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, target)
        if not (arguments.api_key_file or arguments.token_file):
            arguments.api_key = os.environ.get("EMBEDGRPC_API_KEY", "")
            arguments.token = os.environ.get("EMBEDGRPC_TOKEN", "")
        # Late, as it loads gRPC and numpy, which `--help` does not need.
        from embedgrpc.client.cli_commands import run_command  # noqa: PLC0415 -- see above

        return run_command(arguments)
    except BrokenPipeError:
        # The reader closed the pipe; Python's flush at exit must not report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
