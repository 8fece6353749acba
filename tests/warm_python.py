"""Runs programs in new processes that have the server's libraries imported already.

A start of Python with these libraries takes a second or more. So each process of the tests starts
one template that imports them once, and every program runs in a fork of it: with arguments,
variables, a working directory and standard streams of its own. Unlike a new interpreter, such a
process does not notice that a module forgets to import another: each command has a test that starts
it anew.
"""

import atexit
import contextlib
import functools
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_IMPORTED = (
    "grpc",
    "numpy",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "embedgrpc.cli.check",
    "embedgrpc.cli.health",
    "embedgrpc.cli.inspect",
    "embedgrpc.cli.pull",
    "embedgrpc.cli.triton_repo",
    "embedgrpc.cli.verification",
    "embedgrpc.cli.verify",
    "embedgrpc.client.cli_commands",
    "embedgrpc.models.graphs.build",
    "embedgrpc.server.loading.loading",
    "embedgrpc.triton_repository.writing",
)
_MESSAGE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a program."""

    code: int
    out: str
    err: str


def run_warm(
    program: str,
    *arguments: str | Path,
    environment: Mapping[str, str],
    folder: Path | None = None,
    stdin: bytes = b"",
) -> Done:
    """Run a program, as `python -c PROGRAM ARGUMENTS` would, to its end.

    Args:
        program: The program's text.
        arguments: Its arguments.
        environment: All its variables.
        folder: Its working directory; None for that of this process.
        stdin: Its standard input.
    """
    with contextlib.ExitStack() as files:
        streams = [files.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(stdin)
        streams[0].seek(0)
        code = _template().run(
            {
                "program": program,
                "arguments": [*map(str, arguments)],
                "environment": dict(environment),
                "folder": str(folder or Path.cwd()),
            },
            [one.fileno() for one in streams],
        )
        found = []
        for one in streams[1:]:
            one.seek(0)
            found.append(one.read().decode())
    return Done(code, *found)


class _Template:
    """A process that forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES_MAX)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_python", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parent.parent,
                # One thread: a fork has no others.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def run(self, task: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Let a fork run a program; return its exit code."""
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(task).encode()], streams)
                answer = self._socket.recv(100)
            except BaseException:
                # The test ran out of time, and the program goes on: neither may meet the next test.
                os.killpg(self._process.pid, signal.SIGKILL)
                _template.cache_clear()
                raise
        assert answer, f"the template ended with {self._process.wait()}"
        return os.waitstatus_to_exitcode(int(answer))

    def end(self) -> None:
        """Let the template end."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _template() -> _Template:
    template = _Template()
    atexit.register(template.end)
    return template


def _prepare() -> None:
    """Import what the programs need."""
    from embedgrpc.libraries.no_telemetry import disable_telemetry  # noqa: PLC0415 - before others

    disable_telemetry()
    for name in _IMPORTED:
        import_module(name)
    # It reads the environment when it is imported: only the libraries that it needs stay.
    import_module("huggingface_hub.hf_api")
    for name in [one for one in sys.modules if one.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    logging.getLogger("huggingface_hub").handlers.clear()
    # A fork need not look for garbage in what it shares.
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1


def _fork(connection: socket.socket) -> Mapping[str, Any]:
    """Fork a process for each task; return in the fork, with its task."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES_MAX, 3)
        if not message:
            raise SystemExit
        process = os.fork()
        if process == 0:
            connection.close()
            for number, one in enumerate(streams):
                os.dup2(one, number)
                os.close(one)
            task: Mapping[str, Any] = json.loads(message)
            return task
        for one in streams:
            os.close(one)
        connection.send(str(os.waitpid(process, 0)[1]).encode())


def _run(task: Mapping[str, Any]) -> None:
    """Become the program."""
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.argv[:] = ["-c", *task["arguments"]]
    paths = os.environ.get("PYTHONPATH", "")
    sys.path[:0] = ["", *(one for one in paths.split(os.pathsep) if one)]
    own, main = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(task["program"], "<string>", "exec"), main.__dict__)  # noqa: S102 - a test's
    finally:
        # Until here, so that this function keeps what it uses.
        del own


if __name__ == "__main__":
    _prepare()
    with socket.socket(fileno=int(sys.argv[1])) as _connection:
        _task = _fork(_connection)
    _run(_task)
