import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.server.process.server import flush
from embedgrpc.server.settings.settings import FLUSH_S
from tests.server.server_process import started
from tests.server.service import PATIENCE_S, Client

_STUCK = """
import sys, threading
from embedgrpc.server.telemetry import logs
from embedgrpc.server.process.shutdown_deadline import ShutdownDeadline

logs.configure("info", "json")
threading.Thread(target=threading.Event().wait).start()  # the interpreter would wait for it
ShutdownDeadline(0.1).begin()
if "blocked" in sys.argv:
    while True:
        sys.stderr.write("x" * 65536)
while True:
    pass
"""


_HANGING = """
import asyncio, os, signal, sys
from embedgrpc.server.process import process
from embedgrpc.server.telemetry import logs
from embedgrpc.server.settings.settings import Settings

class Hanging(process.Server):
    async def load(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    async def drain(self):
        await asyncio.Event().wait()

process.Server = Hanging
logs.configure("info", "json")
settings = Settings(address="127.0.0.1:0", cache_dir=sys.argv[1])
asyncio.run(process.serve(settings.model_copy(update={"shutdown_timeout_s": 0.1})))
"""


def test_the_timer_of_a_stop_starts_with_the_signal(tmp_path: Path) -> None:
    """A server that hangs from the signal on is still ended in time."""
    with subprocess.Popen(
        [sys.executable, "-c", _HANGING, str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "stop took too long" in process.stderr.read()
        assert process.wait(PATIENCE_S) == 1


_BUFFERED = """
import logging, sys, threading
from embedgrpc.server.process.shutdown_deadline import ShutdownDeadline

class Buffered(logging.Handler):
    lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def flush(self):
        print(*self.lines, file=sys.stderr, flush=True)

logging.getLogger().addHandler(Buffered())
ShutdownDeadline(0.1).begin()
threading.Event().wait()
"""


def test_what_was_logged_is_written_before_the_end() -> None:
    """The line that says why is not lost in a buffer."""
    done = subprocess.run(
        [sys.executable, "-c", _BUFFERED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "stop took too long" in done.stderr


@pytest.mark.parametrize("how", ["busy", "blocked"])
def test_a_stop_that_takes_too_long_is_ended(how: str) -> None:
    """A busy interpreter, a thread that does not end, or a blocked log cannot prevent that."""
    with subprocess.Popen(
        [sys.executable, "-c", _STUCK, how], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr is not None
        if how == "busy":
            assert "stop took too long" in process.stderr.read()


async def test_traces_and_metrics_are_flushed_side_by_side() -> None:
    """A collector that does not answer costs its timeout once, not once for each export."""
    together = threading.Barrier(2)
    waited: list[float] = []

    class Exporting:
        def shutdown(self, timeout_s: float) -> bool:
            waited.append(timeout_s)
            together.wait(PATIENCE_S)
            return True

    exporting: Any = [Exporting(), Exporting()]
    await flush(exporting)
    assert waited == [FLUSH_S, FLUSH_S]


async def test_a_collector_that_is_gone_does_not_hold_up_a_stop(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans and metrics that cannot be sent are dropped, with a line each; the stop is clean."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        async with started(cache_dir=cache_dir, telemetry=True) as server:
            client = Client((await server.until("serving"))["address"])
            async with client.channel:
                await client.embed("a text")
            server.signal(signal.SIGTERM)
            assert await server.ended() == 0
        assert len(server.events("telemetry not flushed in time")) == 2
        assert server.events("stopped")
        assert not server.events("stop took too long")
