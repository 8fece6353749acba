"""The server in unusual environments: it serves there, or reports what to change."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedgrpc.client import Client
from tests.server.service import FIXTURES, PATIENCE_S

pytestmark = pytest.mark.long


EMBEDGRPC = str(Path(sys.executable).parent / "embedgrpc")
SOURCE = str(FIXTURES / "bert-cls")
SERVICE = "embedgrpc.v1.EmbeddingService"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
HERE = "unix:{folder}/s"


@dataclass(frozen=True)
class Case:
    """An environment.

    Attributes:
        address: Where to listen; every user may write to {folder}, and {port} is free.
        variables: The environment, besides PATH; {folder} and {cache} are filled in.
        wrapper: The command that runs the server.
        flags: Flags of the server.
        logged: A part of what it must log; may be empty.
    """

    address: str = HERE
    variables: dict[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    logged: str = ""


def _shell(redirection: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$@" {redirection}', "sh")


PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"), "http://[::1]:9")
DISABLED = {"OTEL_SDK_DISABLED": "true"}
CONSOLE = {"OTEL_TRACES_EXPORTER": "console"}
READ_ONLY = (
    *("unshare", "--mount", "sh", "-c"),
    'cd "$EMBEDGRPC_CACHE_DIR" && mount --bind . . && mount -o remount,ro,bind "$PWD" && exec "$@"',
    "sh",
)
PROCESS_1 = ("unshare", "--pid", "--fork", "--kill-child")
# Several differences in one case, as starting a server takes a second; they are independent.
SERVED = {
    "B3 for every pod, closed streams, a user without a name": Case(
        variables={"OTEL_PROPAGATORS": "tracecontext,baggage,b3"},
        wrapper=(*_shell("<&- >&- 2>&-"), "setpriv", "--reuid=54321", *NOBODY[2:]),
    ),
    "B3 and traced, every address, a proxy": Case(
        address="0.0.0.0:{port}",
        flags=("--drain-delay-s=0",),
        variables={"OTEL_PROPAGATORS": "b3multi, tracecontext", **CONSOLE, **PROXIES},
        logged='"threads": ',
    ),
    "a propagator that is missing, another user, a socket for all": Case(
        variables={"OTEL_PROPAGATORS": "tracecontext,jaeger", **CONSOLE},
        wrapper=NOBODY,
        flags=("--unix-socket-mode=0666",),
        logged='"jaeger"',
    ),
    "only propagators that are missing, a read-only cache": Case(
        variables={"OTEL_PROPAGATORS": "xray", **CONSOLE}, wrapper=READ_ONLY, logged='"xray"'
    ),
    "missing propagators without the SDK, process 1": Case(
        variables={"OTEL_PROPAGATORS": "jaeger,xray", **DISABLED},
        wrapper=PROCESS_1,
        logged='"version": "',
    ),
    "no propagators, closed stderr": Case(
        variables={"OTEL_PROPAGATORS": " ,", **CONSOLE}, wrapper=_shell("2>&-")
    ),
    "a full disk": Case(wrapper=_shell("2>/dev/full")),
    "stderr without a reader": Case(wrapper=_shell("2>{folder}/unread")),
}


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A cache that root filled with `pull`, with a umask that lets other users read."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    try:
        subprocess.run(
            [EMBEDGRPC, "pull", SOURCE, "--cache-dir", place / "cache"],
            check=True,
            capture_output=True,
            umask=0o022,
        )
        yield place / "cache"
    finally:
        shutil.rmtree(place)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may write to, unlike pytest's own."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o1777)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@dataclass(frozen=True)
class Place:
    """The paths and the port of a running case."""

    case: Case
    folder: Path
    cache: Path
    port: int

    def fill(self, text: str) -> str:
        """Fill a text with the paths and the port."""
        return text.format(folder=self.folder, cache=self.cache, port=self.port)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the server and of its clients; without HOME."""
        named = {name: self.fill(value) for name, value in self.case.variables.items()}
        ours = {"EMBEDGRPC_ADDRESS": self.address, "EMBEDGRPC_CACHE_DIR": str(self.cache)}
        return {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **ours, **named}

    @property
    def address(self) -> str:
        """The address of the server."""
        return self.fill(self.case.address)

    def command(self) -> list[str]:
        """The command of the server."""
        serve = [EMBEDGRPC, "serve", f"--model={SOURCE}", "--device=cpu"]
        wrapper = [self.fill(part) for part in self.case.wrapper]
        if wrapper and shutil.which(wrapper[0]) is None:
            pytest.skip(f"{wrapper[0]} is missing")
        if os.geteuid() and {"setpriv", "unshare"} & set(wrapper):
            pytest.skip("only root may be another user, or make a namespace")
        return [*wrapper, *serve, *self.case.flags]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait_until_serving(address: str) -> None:
    """Wait until the server serves; gRPC connects as soon as it listens."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)]
    with grpc.insecure_channel(address.replace("0.0.0.0", "127.0.0.1"), options) as channel:  # noqa: S104 - replaced
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        stub = health_pb2_grpc.HealthStub(channel)
        for answer in stub.Watch(request, timeout=2 * PATIENCE_S, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


@pytest.mark.parametrize("case", SERVED.values(), ids=SERVED)
def test_it_serves(case: Case, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts, answers calls and the health check of its image, and stops cleanly."""
    place = Place(case, folder, cache, _free_port())
    os.mkfifo(folder / "unread")
    # A full pipe whose reader never reads.
    unread = os.open(folder / "unread", os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(unread, b"x" * 4096)
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            place.command(),
            env=place.environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        _wait_until_serving(place.address)
        if place.address.startswith("unix:") and case.flags:
            mode = (folder / "s").stat().st_mode
            assert stat.S_IMODE(mode) == 0o666
        health = subprocess.run(
            [EMBEDGRPC, "health", SERVICE], env=place.environment, capture_output=True, check=False
        )
        assert (health.returncode, health.stdout) == (0, b"SERVING\n"), health.stderr
        for name, value in case.variables.items():
            monkeypatch.setenv(name, value)
        if "PROXY" in "".join(case.variables).upper():
            with Client(f"127.0.0.1:{place.port}") as client:
                assert client.embed(["a text"]).vectors.shape[0] == 1
        os.kill(_server_of(process), signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(unread)
    written = log.read_text()
    assert "Traceback" not in written
    assert case.logged in written


def _server_of(process: "subprocess.Popen[bytes]") -> int:
    """Return the server's process id: the process, or the child of `unshare`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    is_wrapper = Path(f"/proc/{process.pid}/comm").read_text().strip() == "unshare"
    return int(children[0]) if is_wrapper else process.pid


LONG = "unix:/tmp/" + "x" * 103
REFUSED = {
    "no home": (Case(variables={"EMBEDGRPC_CACHE_DIR": ""}, wrapper=NOBODY), "cache_dir", 2),
    "a long path": (Case(address=LONG), "the path has 108 bytes; the limit is 107", 2),
    "no such folder": (Case(address="unix:/nowhere/s"), "there is no such folder", 2),
    "a folder of others": (Case(address="unix:/s", wrapper=NOBODY), "cannot be written", 2),
    "not a socket": (Case(address="unix:{folder}/file"), "something else than a socket", 2),
    "another host's address": (Case(address="192.0.2.1:{port}"), "has no such address", 2),
    "a taken port": (Case(address="127.0.0.1:{taken}"), "another server is running there", 1),
    "a closed cache": (
        Case(variables={"EMBEDGRPC_CACHE_DIR": "{folder}/mine"}, wrapper=NOBODY),
        "--cache-dir",
        2,
    ),
    "a closed entry": (
        Case(variables={"EMBEDGRPC_CACHE_DIR": "{folder}/closed"}, wrapper=NOBODY),
        "cannot be read: Permission denied",
        2,
    ),
}


@pytest.mark.parametrize(("case", "reason", "code"), REFUSED.values(), ids=REFUSED)
def test_it_reports_why_it_does_not_serve(
    case: Case, reason: str, code: int, folder: Path, cache: Path
) -> None:
    """One line names the problem and what to change, without a stack."""
    (folder / "file").write_text("no socket")
    (folder / "mine").mkdir(mode=0o755)
    shutil.copytree(cache, folder / "closed")
    for entry in (folder / "closed").iterdir():
        entry.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = case.address.replace("{taken}", str(taken.getsockname()[1]))
        place = Place(Case(filled, case.variables, case.wrapper), folder, cache, _free_port())
        # As a user without a name, who has no home folder either.
        command = [part.replace("65534", "54321") for part in place.command()]
        done = subprocess.run(
            command,
            env=place.environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    problems = [line for line in done.stderr.splitlines() if reason in line]
    assert problems, done.stderr
    assert "E0000" not in done.stderr
    assert "add_port.cc" not in done.stderr


# Sends the process a signal during its start: at the first import of a module.
EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Finder())
from embedgrpc.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


# Signals that the parent of the tests ignores, as `nohup` does, are ignored by its children.
HEEDING = ("env", "--default-signal=HUP,INT,TERM")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("module", ["embedgrpc.cli.commands", "onnxruntime"])
def test_a_signal_during_the_imports_ends_process_1(
    module: str, number: signal.Signals, folder: Path, cache: Path
) -> None:
    """Process 1 ends, although the kernel drops signals that it has no handler for."""
    place = Place(Case(wrapper=PROCESS_1), folder, cache, 0)
    command = place.command()
    at = command.index(EMBEDGRPC)
    early = [*HEEDING, sys.executable, "-c", EARLY, module, str(int(number))]
    done = subprocess.run(
        [*command[:at], *early, *command[at + 1 :]],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_of_another_command(folder: Path, cache: Path) -> None:
    """Ctrl-C while a command starts ends it without a stack, with the exit code of shells."""
    early = [*HEEDING, sys.executable, "-c", EARLY, "pydantic", str(int(signal.SIGINT)), "check"]
    place = Place(Case(), folder, cache, 0)
    done = subprocess.run(early, env=place.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_hangup_under_nohup(folder: Path, cache: Path) -> None:
    """SIGHUP never stops a server that `nohup` started: it reloads."""
    place = Place(Case(wrapper=("sh", "-c", 'trap "" HUP; exec "$@"', "sh")), folder, cache, 0)
    with subprocess.Popen(
        place.command(), env=place.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        _wait_until_serving(place.address)
        process.send_signal(signal.SIGHUP)
        _wait_until_serving(place.address)
        process.send_signal(signal.SIGTERM)
        events = [json.loads(line)["event"] for line in process.stderr]
    assert process.returncode == 0
    assert events[-1] == "stopped"
    assert "reload requested" in events
