"""Start what `benchmarks.peers` compares: servers with a client, and libraries."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import workloads
from benchmarks.processes import Loop, cpu_s, peak_rss_bytes, server
from embedgrpc.models.folder import properties
from embedgrpc.models.graphs import graph
from embedgrpc.models.sources import source
from embedgrpc.server.settings.settings import Settings

_PROGRAM = str(Path(__file__).parent / "peer_loop.py")
_THREADS = len(os.sched_getaffinity(0))
# Nothing is downloaded, and nothing is sent to anybody.
_QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


@dataclass(frozen=True)
class Contender:
    """A library, or a server and its client, that has embedded its first text.

    Attributes:
        name: The name in tables.
        loop: The process that is told what to embed.
        pids: Its processes: the one with the model, and that of a client.
        start_s: The time from its start to the first vector.
    """

    name: str
    loop: Loop
    pids: tuple[int, ...]
    start_s: float

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(cpu_s(pid) for pid in self.pids)

    def peak_rss_bytes(self) -> list[int]:
        """Return the peak resident memory of each of its processes."""
        return [peak_rss_bytes(pid) for pid in self.pids]


Start = Callable[[], AbstractContextManager[Contender]]


def prepare_servers(model: str) -> Iterator[Start]:
    """Return how to start a server with float32 weights, and one with int8."""
    for weight_type in ("float32", "int8"):
        yield partial(_serve, model, weight_type)


def prepare_libraries(
    resources: ExitStack, model: str, pythons: Mapping[str, str]
) -> Iterator[Start]:
    """Return how to start each library, by the interpreters that have them.

    Args:
        resources: Keeps a copy of the model until it ends.
        model: The source of the model.
        pythons: The interpreters by library.
    """
    files = source.resolve(model)
    for library, python in pythons.items():
        folder = _copy_graph(resources, files) if library == "fastembed" else files.folder
        yield partial(_load, library, python, str(folder))


def prepare_tei(resources: ExitStack, model: str, program: str) -> Start:
    """Return how to start text-embeddings-inference with the server's float32 graph.

    Args:
        resources: Keeps a copy of the model until it ends.
        model: The source of the model.
        program: Its program, `text-embeddings-router`, built for ONNX Runtime and gRPC.
    """
    return partial(_serve_tei, program, str(_copy_graph(resources, source.resolve(model))))


@contextmanager
def _serve(model: str, weight_type: str) -> Iterator[Contender]:
    # A client that is there before the server, as applications are: its imports do not count.
    with Loop([sys.executable, _PROGRAM, "embedgrpc", "", str(_THREADS)]) as client:
        _prepare_first(client)
        began = time.perf_counter()
        with server(source=model, weight_type=weight_type) as served:
            client.ask(do="connect", target=served.target)
            client.ask(do="one", name="first", number=0)
            start_s = time.perf_counter() - began
            yield Contender(f"server, {weight_type}", client, (served.pid, client.pid), start_s)


@contextmanager
def _serve_tei(program: str, folder: str) -> Iterator[Contender]:
    with Loop([sys.executable, _PROGRAM, "tei", "", str(_THREADS)]) as client:
        _prepare_first(client)
        port, metrics_port = _free_ports(2)
        command = [program, "--model-id", folder, "--pooling", "mean"]
        command += ["--hostname", "127.0.0.1", "--port", str(port)]
        command += ["--prometheus-port", str(metrics_port)]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_until_listening(process, port)
            client.ask(do="connect", target=f"127.0.0.1:{port}")
            client.ask(do="one", name="first", number=0)
            start_s = time.perf_counter() - began
            yield Contender("TEI", client, (process.pid, client.pid), start_s)
        finally:
            process.terminate()
            process.wait(60)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait for a server that says nothing when it is ready; a minute at most.

    Raises:
        SystemExit: It has ended, or does not listen.
    """
    for _ in range(60 * 200):
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.005)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


@contextmanager
def _load(library: str, python: str, folder: str) -> Iterator[Contender]:
    began = time.perf_counter()
    command = [python, _PROGRAM, library, folder, str(_THREADS)]
    with Loop(command, env=os.environ | _QUIET) as loop:
        _prepare_first(loop)
        loop.ask(do="one", name="first", number=0)
        yield Contender(library, loop, (loop.pid,), time.perf_counter() - began)


def _prepare_first(loop: Loop) -> None:
    loop.ask(do="prepare", name="first", texts=workloads.short().texts[:1])


def _copy_graph(resources: ExitStack, files: source.ModelFiles) -> Path:
    """Return a folder with the server's graph and the tokenizer, which `resources` deletes."""
    folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
    described = properties.read(files)
    built = graph.prepare(files, described, cache_dir=Settings().cache_dir)
    for path in (*built.files, *files.folder.glob("*.json")):
        shutil.copy(path, folder)
    return folder
