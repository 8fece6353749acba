"""Serve for a while; print calls to other machines, and files in the user's home folder.

uv run python -m tests.network [--seconds S] [--variable NAME=VALUE]
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.network.tracing import Tracer, variables


def main() -> int:
    """Print each call and file; return 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40, help="how long to serve")
    parser.add_argument(
        "--variable", action="append", default=[], metavar="NAME=VALUE", help="set for the server"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        tracer = Tracer(Path(folder) / "calls")
        serve = [sys.executable, "-m", "embedgrpc.cli.main", "serve", "--address=127.0.0.1:0"]
        serve += ["--device=cpu", f"--cache-dir={folder}/cache"]
        named = dict(one.partition("=")[::2] for one in arguments.variable)
        process = subprocess.Popen(tracer.command(serve), env=variables(home) | named)
        try:
            time.sleep(arguments.seconds)
            os.kill(tracer.traced(process), signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
        calls = tracer.calls_elsewhere()
        files = [path for path in home.rglob("*") if path.is_file()]
        print(f"{len(tracer.calls())} calls, {len(calls)} of them to other machines")
        print(*calls, *files, sep="\n")
        return 1 if calls or files else 0


if __name__ == "__main__":
    raise SystemExit(main())
