"""The environment of a tritonserver for tests: `python -m tests.triton.environment` installs it.

NVIDIA publishes the server in a wheel, so that no container is needed. It has its own environment,
as its Python backend reads arrays wrongly with NumPy 2.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).parent.parent.parent / ".cache" / "triton"

_PINS = (
    "nvidia-pytriton==0.7.0",
    "numpy==1.26.4",
    "onnxruntime==1.31.1",
    "flatbuffers==25.12.19",
    "packaging==25.0",
    "protobuf==6.33.6",
)
# The versions with a stub process in the wheel and with wheels of NumPy 1.
_PYTHONS = ("3.11", "3.12")
# Raise it when the same packages are arranged in another way.
_LAYOUT = 1
_DESCRIBE = """
import json, pathlib, sysconfig
name = sysconfig.get_config_var("INSTSONAME")
root = pathlib.Path(sysconfig.get_config_var("LIBDIR"))
places = (root, root / (sysconfig.get_config_var("MULTIARCH") or "."))
found = [str(one) for one in places if ".so" in name and (one / name).is_file()]
print(json.dumps({
    "library": f"libpython{sysconfig.get_python_version()}.so",
    "library_folder": found[0] if found else "",
    "version": sysconfig.get_python_version(),
}))
"""


class EnvironmentMissingError(Exception):
    """The environment is missing or cannot be made; one line says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An installed tritonserver.

    Attributes:
        program: The server.
        programs: The folder of the environment's `python3`.
        python_backend: The folder of the Python backend, with its stub process.
        libraries: The folders of the libraries that the server and the stub link to.
    """

    program: Path
    programs: Path
    python_backend: Path
    libraries: tuple[Path, ...]

    def variables(self) -> Mapping[str, str]:
        """Return the server's environment variables."""
        return {
            "HOME": str(Path.home()),
            # The stub uses the packages of the first python3.
            "PATH": os.pathsep.join((str(self.programs), "/usr/bin", "/bin")),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries)),
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }


def find(place: Path = PLACE) -> Environment:
    """Return the installed environment.

    Raises:
        EnvironmentMissingError: There is none, or its packages have other versions.
    """
    stamp = place / "installed.json"
    try:
        installed = json.loads(stamp.read_bytes())
    except (FileNotFoundError, ValueError):
        installed = {}
    library_folder = Path(installed.get("library_folder", place / "none"))
    if installed.get("pins") != _stamped() or not library_folder.is_dir():
        raise EnvironmentMissingError("no current tritonserver: run `uv run poe triton`")
    packages = _packages(place, installed["version"])
    return Environment(
        program=packages / "pytriton/tritonserver/bin/tritonserver",
        programs=place / "environment/bin",
        python_backend=place / "python",
        libraries=(library_folder, packages / "nvidia_pytriton.libs"),
    )


def install(place: Path = PLACE) -> None:
    """Install the environment, unless it exists.

    Raises:
        EnvironmentMissingError: The interpreter cannot host it.
        subprocess.CalledProcessError: A package cannot be installed; uv has printed why.
    """
    try:
        find(place)
    except EnvironmentMissingError:
        shutil.rmtree(place, ignore_errors=True)
    else:
        return
    place.mkdir(parents=True)
    uv = os.environ.get("UV", "uv")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = sys.executable if running in _PYTHONS else _PYTHONS[-1]
    environment = place / "environment"
    subprocess.run([uv, "venv", "--quiet", "--python", wanted, environment], check=True)
    python = environment / "bin/python"
    described = _describe(python)
    # Without dependencies: only an unused API needs them.
    install_into = (uv, "pip", "install", "--quiet", "--no-deps", "--python")
    subprocess.run([*install_into, python, *_PINS], check=True)
    version = described["version"]
    _place_backend(_packages(place, version), place / "python", version)
    # Last, so that an interrupted installation does not count.
    (place / "installed.json").write_text(json.dumps({"pins": _stamped(), **described}))


def _stamped() -> list[str | int]:
    return [_LAYOUT, *_PINS]


def _packages(place: Path, version: str) -> Path:
    return place / f"environment/lib/python{version}/site-packages"


def _describe(python: Path) -> dict[str, str]:
    """Ask an interpreter for its packages and its shared library."""
    done = subprocess.run([python, "-c", _DESCRIBE], check=True, capture_output=True, text=True)
    described: dict[str, str] = json.loads(done.stdout)
    if not described["library_folder"]:
        raise EnvironmentMissingError(
            f"the interpreter has no shared {described['library']}, which Triton's Python backend"
            f" links to: use one that has it, such as that of `uv python install"
            f" {described['version']}`, or install the system's package libpython"
            f"{described['version']}"
        )
    return described


def _place_backend(packages: Path, folder: Path, version: str) -> None:
    """Copy the stub of one Python version beside the backend, which looks for it there."""
    server = packages / "pytriton/tritonserver"
    folder.mkdir()
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(server / "backends/python" / name, folder)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy2(stub, folder)


if __name__ == "__main__":
    try:
        install()
    except EnvironmentMissingError as obstacle:
        sys.exit(f"triton: {obstacle}")
