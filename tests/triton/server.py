"""A real tritonserver in a process of its own."""

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
# How long it waits for requests in flight when it is asked to stop.
_EXIT_TIMEOUT_S = 1
_PORT_ATTEMPTS = 3
_SERVICE = "/inference.GRPCInferenceService/"
_OUR_BACKEND = Path(__file__).parent / "onnxruntime_backend.py"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps its regions


class ServerEndedError(Exception):
    """It ended before it served; the message is its log."""


class TritonServer:
    """A tritonserver on loopback ports that stay the same from one start to the next.

    Models are loaded and unloaded by name. To be used in a `with` statement, which leaves nothing
    behind: no process, no shared memory, no file. All methods block.
    """

    def __init__(
        self, environment: Environment, repository: Path, *, models: Sequence[str] = ("*",)
    ) -> None:
        """Starts nothing yet.

        Args:
            environment: What to run.
            repository: The folder of models.
            models: Those to load at each start; "*" for all that are there.
        """
        self._environment = environment
        self._repository = repository.resolve()
        self._models = tuple(models)
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
        """Its gRPC endpoint, HOST:PORT."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would read its metrics."""
        return f"http://127.0.0.1:{self._ports[1]}/metrics"

    @property
    def log(self) -> str:
        """What it has written so far, over all starts."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def memory_regions(self) -> list[Path]:
        """The regions of shared memory that are in use, or were left over."""
        return sorted(_SHARED_MEMORY.glob(f"{self._memory_prefix}*"))

    def start(self) -> None:
        """Starts it and waits until its models serve.

        Raises:
            ServerEndedError: A model cannot be loaded, or a port is taken.
        """
        assert self._process is None, "it runs already"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=dict(self._environment.variables()),
                # Every process of it is in one group, also those that outlive the server.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Asks it to stop, and waits for its end."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            # One that does not stop in time is killed below.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * _EXIT_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Ends it at once, as a crash would, together with the stubs, which would live on."""
        if self._process is None:
            return
        group = self._process.pid
        # There may be nobody left: it has ended, and so has each of its stubs.
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait(_PATIENCE_S)
        _wait_for(lambda: not _lives(group), "the stubs to end")
        self._process = None
        for region in self.memory_regions:
            region.unlink(missing_ok=True)

    def restart(self) -> None:
        """Starts it anew on the same ports, after a crash too."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stops it from running: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it run again."""
        self._signal(signal.SIGCONT)

    def load(self, model: str) -> None:
        """Loads a model, anew where it is loaded.

        Raises:
            grpc.RpcError: It cannot be loaded.
        """
        self.call("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name=model))

    def unload(self, model: str) -> None:
        """Unloads a model and waits until it is gone."""
        self.call("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name=model))
        _wait_for(lambda: not self.is_ready(model), f"{model} to be unloaded")

    def is_ready(self, model: str) -> bool:
        """Tells whether a model serves."""
        request = messages.ModelReadyRequest(name=model)
        return bool(self.call("ModelReady", request, messages.ModelReadyResponse).ready)

    def wait_for_log(self, words: str) -> None:
        """Waits until it, or a model, has written something."""
        _wait_for(lambda: words in self.log, f"{words!r} in the log")

    def call(self, method: str, request: Any, response: Any = None) -> Any:
        """Calls one method of its service.

        Args:
            method: Such as "ModelInfer".
            request: Its message.
            response: The class of the answer; without it the answer stays bytes.

        Returns:
            The answer.

        Raises:
            grpc.RpcError: It failed.
        """
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.address, options=unlimited) as channel:
            stub = channel.unary_unary(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response and response.FromString,
            )
            return stub(request, timeout=_PATIENCE_S, wait_for_ready=False)

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
            # By its name shared memory is known to be of this server and no other.
            *(
                f"--backend-config={backend},shm-region-prefix-name={self._memory_prefix}"
                for backend in ("python", "onnxruntime")
            ),
        ]

    def _start_on_free_ports(self) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self.start()
            except ServerEndedError:
                # Somebody else may have taken a port since it was found free.
                if "already in use" not in self.log or attempt == _PORT_ATTEMPTS:
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
                return bool(self.call("ServerReady", request, messages.ServerReadyResponse).ready)
            except grpc.RpcError:
                return False

        _wait_for(ready, "tritonserver to be ready")

    def _remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


def _arrange_backends(environment: Environment, folder: Path) -> None:
    """Puts Triton's Python backend and ours for ONNX Runtime into one folder of backends."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "python").symlink_to(environment.python_backend)
    (folder / "onnxruntime/model.py").symlink_to(_OUR_BACKEND)


def _free_ports(count: int) -> tuple[int, ...]:
    """Finds ports that nobody listens on; all are held until all are found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(one.getsockname()[1] for one in sockets)


def _lives(group: int) -> bool:
    """Tells whether a process of a group is left that is more than an entry in a table."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        # State, parent, group: what nobody has waited for yet is a zombie.
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {_PATIENCE_S} s for {what}"
        time.sleep(_POLL_S)
