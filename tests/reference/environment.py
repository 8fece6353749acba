"""The environment of the reference libraries: `python -m tests.reference.environment` installs it.

It is apart from the project's own, as PyTorch takes several gigabytes. EMBEDGRPC_REFERENCE_PYTHON
names the interpreter of another one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PLACE = Path(__file__).parent.parent.parent / ".cache" / "reference"
VARIABLE = "EMBEDGRPC_REFERENCE_PYTHON"
PINS = (
    "model2vec==0.10.0",
    "sentence-transformers==6.2.0",
    "transformers==5.23.0",
    "torch==2.13.0",
    # Evaluates models over HTTP.
    "mteb==2.26.24",
)
_PYTHON = "bin/python"


class EnvironmentMissingError(Exception):
    """The environment is missing; one line says what to do."""


def find_python() -> Path:
    """Return the interpreter that has the reference libraries.

    Raises:
        EnvironmentMissingError: There is none.
    """
    named = os.environ.get(VARIABLE, "")
    python = Path(named) if named else PLACE / _PYTHON
    if not python.exists():
        raise EnvironmentMissingError(
            f"no reference libraries at {python}: run `uv run poe reference`, or set {VARIABLE}"
        )
    return python


def find_packages(python: Path) -> Path:
    """Return the folder of the packages of an interpreter."""
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def install() -> None:
    """Install the pinned libraries, unless they are installed.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed; uv has printed why.
    """
    stamp = PLACE / "installed"
    if stamp.exists() and stamp.read_text() == "\n".join(PINS):
        return
    shutil.rmtree(PLACE, ignore_errors=True)
    uv = os.environ.get("UV", "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, PLACE], check=True)
    subprocess.run([uv, "pip", "install", "--python", PLACE / _PYTHON, *PINS], check=True)
    # Last, so that an interrupted installation does not count.
    stamp.write_text("\n".join(PINS))


if __name__ == "__main__":
    install()
