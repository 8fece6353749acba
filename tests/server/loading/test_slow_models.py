"""A model that hangs while it loads does not delay others, and leaves no process behind."""

import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from embedgrpc.backends.base import Backend
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.loading.loading import open_onnx
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from tests.models.breaking import edit_graph
from tests.models.hostile import endless_graph
from tests.server.server_process import started
from tests.server.service import CROSS, EMBED, FIXTURES, Client, settings_for, until
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


def _children(pid: int) -> set[int]:
    """The processes that a process has started and that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.fixture
def endless(tmp_path: Path) -> ModelSettings:
    """A model whose graph is a loop without end."""
    folder = tmp_path / "endless"
    shutil.copytree(FIXTURES / "bert-cls", folder)
    edit_graph(endless_graph)(folder)
    return ModelSettings(id="endless", source=str(folder))


class LateBackend:
    """Opens the graph of one model only when the test says so."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.released = threading.Event()

    def open(self, model: ServedModel, path: Path, settings: Settings) -> Backend:
        """Opens a graph."""
        if model.id == self.model:
            self.released.wait()
        return open_onnx(model, path, settings)


async def test_the_others_are_served_while_one_hangs(
    endless: ModelSettings, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start goes on without it; the stop ends its process at once."""
    caplog.set_level(logging.INFO)
    settings = settings_for(endless, EMBED, cache_dir=cache_dir, load_timeout_s=3600)
    async with Server(settings, patience_s=0.1) as server:
        await server.load()
        (slow,) = [one for one in caplog.records if one.getMessage() == "model is slow to load"]
        assert slow.__dict__["model"] == "endless"
        client = Client(server.address)
        async with client.channel:
            await client.embed("a text", model="embed")
            assert await client.status(f"{EMBEDDING}/embed") == SERVING
            assert await client.status(f"{EMBEDDING}/endless") == NOT_SERVING
        (child,) = _reading()
    await until(lambda: child not in _reading())


def _reading() -> set[int]:
    """The processes of this one that read models, by their command lines."""
    return {pid for pid in _children(os.getpid()) if b"validation.child" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_a_model_that_comes_late_is_served(cache_dir: Path) -> None:
    """A model that the start did not wait for is served once it is loaded."""
    backend = LateBackend("cross")
    settings = settings_for(EMBED, CROSS, cache_dir=cache_dir)
    try:
        async with Server(settings, open_backend=backend.open, patience_s=0.1) as server:
            await server.load()
            assert [model.id for model in server.catalog if model.loaded] == ["embed"]
            backend.released.set()
            await until(lambda: all(model.loaded for model in server.catalog))
    finally:
        backend.released.set()


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL],
    ids=["TERM", "KILL"],
)
async def test_a_signal_ends_the_process_that_reads(
    endless: ModelSettings, cache_dir: Path, number: signal.Signals
) -> None:
    """A server stops at once while a model is read, and leaves no process."""
    flags = ("--model", f"endless={endless.source}", "--load-timeout-s", "3600")
    async with started(*flags, cache_dir=cache_dir) as server:
        await server.until("listening")
        pid = server.process.pid
        await until(lambda: _children(pid))
        (child,) = _children(pid)
        server.signal(number)
        assert await server.ended() == (0 if number is signal.SIGTERM else -number)
    await until(lambda: _is_gone(child))


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@pytest.mark.long
async def test_a_model_that_takes_too_long_fails_alone(
    endless: ModelSettings, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says which model, how long it took and what to set."""
    settings = settings_for(EMBED, endless, cache_dir=cache_dir, load_timeout_s=3)
    async with Server(settings) as server:
        await server.load()
        (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
        assert record.__dict__["model"] == "endless"
        problem = record.__dict__["problem"]
        assert "took longer than 3 s" in problem
        assert "load_timeout_s" in problem
        client = Client(server.address)
        async with client.channel:
            await client.embed("a text", model="embed")
