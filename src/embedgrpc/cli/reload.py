"""`embedgrpc reload`: lets the running server read its settings again."""

import argparse
import os
import signal
from pathlib import Path

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.server.process.pid_file import PidFileError, find_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Checks the settings, and sends SIGHUP to the server that runs with them: it reads them"
        " again, with the files of keys and certificates, and changes its models without a failed"
        " call. Give the same flags, variables and file as to `serve`. The server's log says what"
        " has changed; if something cannot be used, nothing changes. Exits with 2 if the settings"
        " are wrong, and with 1 if no server is found."
    )
    parser.add_argument(
        "--pid", type=int, metavar="N", help="the server's process (default: that of pid_file)"
    )
    add_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Send the signal; return 0, 1 or 2 as the description says."""
    settings = read_configuration(parsed).settings
    if parsed.pid is None and not settings.pid_file:
        return report("set pid_file (--pid-file) as for the server, or give --pid", code=2)
    if parsed.pid is not None and parsed.pid < 1:
        return report(f"--pid must be the number of a process, not {parsed.pid}", code=2)
    try:
        number = parsed.pid or find_process(Path(settings.pid_file).expanduser())
        os.kill(number, signal.SIGHUP)
    except PidFileError as error:
        return report(error, code=1)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return report(f"process {number} cannot be reached: {error}", code=1)
    print(f"asked process {number} to reload; its log says what has changed")
    return 0
