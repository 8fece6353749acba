"""Without a request for it, there is no look-up, no connection, and no file about the user."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.models.sources.hub_server import Repository, serve_hub
from tests.network.tracing import Tracer, TracerMissingError, variables
from tests.server.service import FIXTURES

pytestmark = pytest.mark.long


EMBEDGRPC = str(Path(sys.executable).parent / "embedgrpc")
SOURCE = str(FIXTURES / "bert-cls")
GRAPH = str(FIXTURES / "bert-cls/onnx/model.onnx")
LIBRARY = """
import sys
from pathlib import Path
from embedgrpc.backends.onnx import OnnxBackend
OnnxBackend(Path(sys.argv[1]), device="cpu").close()
"""
USES = {
    "inspect": [EMBEDGRPC, "inspect", SOURCE, "--cache-dir=cache"],
    "pull": [EMBEDGRPC, "pull", SOURCE, "--cache-dir=cache"],
    "verify": [EMBEDGRPC, "verify", SOURCE, "--device=cpu", "--cache-dir=cache"],
    "triton-repo": [EMBEDGRPC, "triton-repo", SOURCE, "repository", "--cache-dir=cache"],
    "the library": [sys.executable, "-c", LIBRARY, GRAPH],
}


def run(command: list[str], folder: Path, **changes: str) -> tuple[Tracer, set[str]]:
    """Run a command; return its calls, and the files that it left in the home folder."""
    home = folder / "home"
    home.mkdir()
    tracer = Tracer(folder / "calls")
    traced = _traced(tracer, command)
    done = subprocess.run(
        traced, env=variables(home) | changes, cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return tracer, _files(home)


def _traced(tracer: Tracer, command: list[str]) -> list[str]:
    try:
        return tracer.command(command)
    except TracerMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


def _files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", USES.values(), ids=USES)
def test_a_command_makes_no_calls(command: list[str], tmp_path: Path) -> None:
    """A command on a local model calls no other machine, and leaves no file in the home folder."""
    tracer, files = run(command, tmp_path)
    assert tracer.calls_elsewhere() == []
    assert files == set()


def test_the_server_makes_no_calls(tmp_path: Path) -> None:
    """`serve` calls no other machine; it listens, so the tracer did record its calls."""
    home = tmp_path / "home"
    home.mkdir()
    tracer = Tracer(tmp_path / "calls")
    serve = [EMBEDGRPC, "serve", f"--model={SOURCE}", "--address=127.0.0.1:0", "--device=cpu"]
    command = _traced(tracer, [*serve, f"--cache-dir={tmp_path / 'cache'}"])
    with subprocess.Popen(
        command, env=variables(home), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            serving = next(line for line in process.stderr if '"event": "serving"' in line)
        finally:
            os.kill(tracer.traced(process), signal.SIGTERM)
            process.stderr.read()
    assert serving
    assert process.returncode == 0
    assert [call for call in tracer.calls() if "AF_INET" in call]
    assert tracer.calls_elsewhere() == []
    assert _files(home) == set()


def test_the_user_may_turn_telemetry_on(tmp_path: Path) -> None:
    """The user's own variable takes precedence, and the tests would see the file."""
    _, files = run(USES["the library"], tmp_path, ORT_DISABLE_TELEMETRY="0")
    assert any("onnxruntime" in file for file in files)


def test_calls_elsewhere_are_seen(tmp_path: Path) -> None:
    """The tracer sees the address of another machine, such as a name server."""
    program = (
        "import socket\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "one.connect(('192.0.2.1', 53))\n"
        "one.connect(('127.0.0.53', 53))\n"
    )
    tracer = Tracer(tmp_path / "calls")
    subprocess.run(_traced(tracer, [sys.executable, "-c", program]), check=False)
    (call,) = tracer.calls_elsewhere()
    assert "192.0.2.1" in call


@pytest.mark.parametrize("named", [{}, {"HF_HUB_DISABLE_TELEMETRY": "0"}], ids=["unset", "0"])
def test_the_hub_is_asked_for_models_only(named: Mapping[str, str], tmp_path: Path) -> None:
    """A download requests only the model's files, unless the user turns telemetry on."""
    with serve_hub() as hub:
        hub.repositories["org/model"] = Repository.of_folder(FIXTURES / "bert-cls")
        variables = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", **named}
        pull = [EMBEDGRPC, "pull", "org/model", "--cache-dir=cache"]
        run(pull, tmp_path, **variables)
        asked = [one for one in hub.requests if "/org/model/" not in one]
    assert bool([one for one in asked if "agent-harnesses" in one]) == bool(named)
    assert not [one for one in asked if "org/model" not in one] or named
