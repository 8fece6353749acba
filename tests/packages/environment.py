"""Environments like those of users: an interpreter, and what an installer puts there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = os.environ.get("UV", "uv")


def build_wheels(folder: Path) -> dict[str, Path]:
    """Build the wheels of both distributions; return them by name."""
    subprocess.run(
        [UV, "build", "--quiet", "--wheel", "--all-packages", "--out-dir", str(folder), str(ROOT)],
        check=True,
    )
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


def find_python(version: str) -> str:
    """Return an interpreter of a version such as "3.10", or skip the test.

    uv finds those on PATH; pyenv's are asked for as well, whether or not they are the chosen ones.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for found in sorted(pyenv.glob(f"{version}.*/bin/python")):
        return str(found)
    done = subprocess.run(
        [UV, "python", "find", "--no-python-downloads", "--system", version],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"Python {version} is not installed")
    return done.stdout.strip()


def install(folder: Path, python: str, *requirements: str, oldest: bool = False) -> str:
    """Make an environment; return its interpreter.

    Args:
        folder: Where to make it.
        python: The interpreter to make it of.
        requirements: What to install.
        oldest: Whether to install the oldest versions that are accepted, and not the newest.
    """
    subprocess.run([UV, "venv", "--quiet", "--python", python, str(folder)], check=True)
    interpreter = str(folder / "bin/python")
    resolution = "lowest" if oldest else "highest"
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", interpreter, "--resolution", resolution,
         *requirements],
        check=True,
    )  # fmt: skip
    return interpreter


def floors(dependencies: list[str]) -> dict[str, str]:
    """Return the lower bounds of dependencies, by name."""
    found = (re.match(r"([\w-]+)>=([\d.]+)", one) for one in dependencies)
    return {match[1]: match[2] for match in found if match}
