"""A real tritonserver in its own process."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2 as messages

from tests.triton.environment import Environment

_PATIENCE_S = 60.0
_POLL_S = 0.02
_READY_CALL_S = 5.0
# How long the server waits for requests in progress when it is asked to stop.
_EXIT_TIMEOUT_S = 1
_PORT_ATTEMPTS = 3
_SERVICE = "/inference.GRPCInferenceService/"
_OUR_BACKEND = Path(__file__).parent / "onnxruntime_backend.py"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps its regions


class ServerEndedError(Exception):
    """The server ended before it was ready; the message is its log."""


class ServerStuckError(Exception):
    """The server neither ended nor became ready; the message is its log."""


class TritonServer:
    """A tritonserver on loopback ports, which stay the same after a restart.

    A context manager that leaves nothing behind: no process, no shared memory, no file. Models are
    loaded and unloaded by name. All methods block.
    """

    def __init__(
        self,
        environment: Environment,
        repository: Path,
        *,
        models: Sequence[str] = ("*",),
        flags: Sequence[str] = (),
    ) -> None:
        """Prepare the server, without starting it.

        Args:
            environment: The installed server.
            repository: The folder of models.
            models: The models to load at each start; "*" for all in the repository.
            flags: Further flags of the command line.
        """
        self._environment = environment
        self._repository = repository.resolve()
        self._models = tuple(models)
        self._flags = tuple(flags)
        self._folder = Path(tempfile.mkdtemp(prefix="triton-"))
        self._memory_prefix = f"{self._folder.name}_"
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = _free_ports(2)
        _arrange_backends(environment, self._folder / "backends")

    def __enter__(self) -> Self:
        try:
            self._start_on_free_ports()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def address(self) -> str:
        """The gRPC endpoint, HOST:PORT."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def metrics_url(self) -> str:
        """The URL of its metrics."""
        return f"http://127.0.0.1:{self._ports[1]}/metrics"

    @property
    def folder(self) -> Path:
        """The folder of its temporary files."""
        return self._folder

    @property
    def log(self) -> str:
        """The log of all starts so far."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def memory_regions(self) -> list[Path]:
        """The regions of shared memory that are in use or left over."""
        return sorted(_SHARED_MEMORY.glob(f"{self._memory_prefix}*"))

    def start(self) -> None:
        """Start the server, and wait until its models are ready.

        Raises:
            ServerEndedError: A model cannot be loaded, or a port is taken.
            ServerStuckError: It is not ready after a long time.
        """
        assert self._process is None, "it runs already"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=dict(self._environment.variables()),
                # One group for all its processes, also for those that outlive the server.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Ask the server to stop, and wait for its end."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            # If it does not stop in time, `kill` ends it below.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * _EXIT_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Kill the server as a crash would, and its stubs, which would outlive it."""
        if self._process is None:
            return
        group = self._process.pid
        # All processes of the group may have ended.
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait(_PATIENCE_S)
        _wait_for(lambda: not _lives(group), "the stubs to end")
        self._process = None
        for region in self.memory_regions:
            region.unlink(missing_ok=True)

    def restart(self) -> None:
        """Restart the server on the same ports, also after a crash."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Pause the server: connections stay open, and it does not answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server continue."""
        self._signal(signal.SIGCONT)

    def load(self, model: str) -> None:
        """Load or reload a model.

        Raises:
            grpc.RpcError: The model cannot be loaded.
        """
        self.call("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name=model))

    def unload(self, model: str) -> None:
        """Unload a model, and wait until it is gone."""
        self.call("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name=model))
        _wait_for(lambda: not self.is_ready(model), f"{model} to be unloaded")

    def is_ready(self, model: str) -> bool:
        """Return whether a model is ready."""
        request = messages.ModelReadyRequest(name=model)
        return bool(self.call("ModelReady", request, messages.ModelReadyResponse).ready)

    def wait_for_log(self, words: str) -> None:
        """Wait until the log contains some words."""
        _wait_for(lambda: words in self.log, f"{words!r} in the log")

    def call(
        self, method: str, request: Any, response: Any = None, *, timeout_s: float = _PATIENCE_S
    ) -> Any:
        """Call a method of the server's service, and return the answer.

        Args:
            method: The name of the method, such as "ModelInfer".
            request: The request message.
            response: The class of the answer; None for bytes.
            timeout_s: How long to wait for the answer.

        Raises:
            grpc.RpcError: The call failed.
        """
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.address, options=unlimited) as channel:
            stub = channel.unary_unary(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response and response.FromString,
            )
            return stub(request, timeout=timeout_s, wait_for_ready=False)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _command(self) -> list[str | Path]:
        grpc_port, metrics_port = self._ports
        return [
            self._environment.program,
            f"--model-repository={self._repository}",
            f"--backend-directory={self._folder / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            "--disable-auto-complete-config",
            "--allow-http=false",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={metrics_port}",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            # A unique prefix for the shared memory of this server.
            *(
                f"--backend-config={backend},shm-region-prefix-name={self._memory_prefix}"
                for backend in ("python", "onnxruntime")
            ),
            *self._flags,
        ]

    def _start_on_free_ports(self) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self.start()
            except (ServerEndedError, ServerStuckError) as error:
                # Another process may have taken a port meanwhile, and a start hangs now and then.
                is_stuck = isinstance(error, ServerStuckError)
                if attempt == _PORT_ATTEMPTS or not (is_stuck or "already in use" in self.log):
                    raise
                self.kill()
                self._ports = _free_ports(2)
            else:
                break

    def _wait_until_ready(self) -> None:
        request = messages.ServerReadyRequest()

        def ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServerEndedError(self.log)
            try:
                # Another process may have taken the port, and not answer.
                answer = self.call(
                    "ServerReady", request, messages.ServerReadyResponse, timeout_s=_READY_CALL_S
                )
            except grpc.RpcError:
                return False
            return bool(answer.ready)

        try:
            _wait_for(ready, "tritonserver to be ready")
        except AssertionError as error:
            raise ServerStuckError(self.log) from error

    def _remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


def _arrange_backends(environment: Environment, folder: Path) -> None:
    """Link Triton's Python backend and ours for ONNX Runtime into one folder."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "python").symlink_to(environment.python_backend)
    (folder / "onnxruntime/model.py").symlink_to(_OUR_BACKEND)


def _free_ports(count: int) -> tuple[int, ...]:
    """Return free ports; each is held until all are found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(one.getsockname()[1] for one in sockets)


def _lives(group: int) -> bool:
    """Return whether a process of a group still runs; zombies do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        # State, parent, group.
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {_PATIENCE_S} s for {what}"
        time.sleep(_POLL_S)
