"""The environments of foreign clients: `python -m tests.clients.environment` installs them.

One is for Python, one for Node, where Node is there, two for the frameworks of our own
integrations, and one for light data engines. All are apart from the project's own. The frameworks
that need PyTorch take several gigabytes. With `ray` or `spark` as arguments, it installs these
engines alone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / ".cache" / "clients"
PROGRAMS = Path(__file__).parent / "programs"
_REQUIREMENTS = Path(__file__).parent / "requirements.txt"
_PACKAGE = Path(__file__).parent / "package.json"
_ENGINES = ROOT / "tests" / "data_engines"
_INTEGRATIONS = ROOT / "tests" / "integrations"
_FRAMEWORKS = {
    "frameworks": _INTEGRATIONS / "requirements.txt",
    "frameworks-torch": _INTEGRATIONS / "requirements-torch.txt",
}


class EnvironmentMissingError(Exception):
    """The environment is missing; one line says what to do."""


def find_command(program: str) -> tuple[list[str], Path]:
    """Return the command that runs a program of the folder `programs`, and the folder to run in.

    Raises:
        EnvironmentMissingError: Its libraries are not installed, or have other versions.
    """
    if program.endswith(".mjs"):
        if shutil.which("node") is None:
            raise EnvironmentMissingError("node is not installed")
        _check_stamp(PLACE / "node", _PACKAGE)
        # A program in a file would look for its libraries beside itself.
        text = (PROGRAMS / program).read_text("utf-8")
        return ["node", "--input-type=module", "--eval", text], PLACE / "node"
    _check_stamp(PLACE / "python", _REQUIREMENTS)
    return [str(PLACE / "python/bin/python"), str(PROGRAMS / program)], PROGRAMS


def find_frameworks(name: str) -> Path:
    """Return the interpreter of an environment: "frameworks", or "frameworks-torch".

    Raises:
        EnvironmentMissingError: They are not installed, or have other versions.
    """
    _check_stamp(PLACE / name, _FRAMEWORKS[name])
    return PLACE / name / "bin/python"


def find_engine(name: str) -> Path:
    """Return the interpreter of the environment of data engines: "light", "ray" or "spark".

    Raises:
        EnvironmentMissingError: They are not installed, or have other versions.
    """
    command = "clients" if name == "light" else "engines"
    _check_stamp(PLACE / name, _ENGINES / f"{name}.txt", command)
    return PLACE / name / "bin/python"


def install(*engines: str) -> None:
    """Install the clients, unless they are installed.

    Args:
        engines: Install these engines instead: "ray", "spark".

    Raises:
        subprocess.CalledProcessError: A package cannot be installed; the installer has printed why.
    """
    uv = os.environ.get("UV", "uv")
    client = ["-e", str(ROOT / "clients" / "python")]
    light: list[tuple[str, Path, list[str]]] = [
        ("python", _REQUIREMENTS, []),
        *((name, wanted, client) for name, wanted in _FRAMEWORKS.items()),
        ("light", _ENGINES / "light.txt", client),
    ]
    heavy = [(name, _ENGINES / f"{name}.txt", client) for name in engines]
    for name, wanted, ours in heavy or light:
        make = [uv, "venv", "--quiet", "--python", sys.executable, "."]
        fill = [uv, "pip", "install", "--quiet", "--python", "bin/python", "-r", str(wanted), *ours]
        _install(PLACE / name, wanted, [make, fill])
    if not engines and shutil.which("npm") is not None:
        fetch = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]
        _install(PLACE / "node", _PACKAGE, [["cp", str(_PACKAGE), "package.json"], fetch])


def _install(folder: Path, wanted: Path, commands: list[list[str]]) -> None:
    try:
        _check_stamp(folder, wanted)
    except EnvironmentMissingError:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        return
    folder.mkdir(parents=True)
    for command in commands:
        subprocess.run(command, cwd=folder, check=True)
    # Last, so that an interrupted installation does not count.
    (folder / "installed").write_bytes(wanted.read_bytes())


def _check_stamp(folder: Path, wanted: Path, command: str = "clients") -> None:
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        raise EnvironmentMissingError(f"no current clients at {folder}: run `uv run poe {command}`")


if __name__ == "__main__":
    install(*sys.argv[1:])
