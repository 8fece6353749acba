import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.machine.thread_priority import give_way, lower_priority
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes here")
_TASKS = Path("/proc/self/task")


def _niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def _thread_ids() -> set[int]:
    return {int(task.name) for task in _TASKS.iterdir()}


def test_only_the_calling_thread_gets_lower_priority() -> None:
    """Its parent keeps its priority, and a second call changes nothing."""
    before = _niceness(threading.get_native_id())

    def work() -> tuple[int, int]:
        lower_priority()
        once = _niceness(threading.get_native_id())
        lower_priority()
        return once, _niceness(threading.get_native_id())

    with ThreadPoolExecutor(1) as pool:
        once, twice = pool.submit(work).result()
    assert once == twice == max(before, 10)
    assert _niceness(threading.get_native_id()) == before


def test_only_the_calling_thread_gives_way() -> None:
    """It has the lowest priority; its parent runs as before."""
    before = _niceness(threading.get_native_id())

    def work() -> int:
        give_way()
        return _niceness(threading.get_native_id())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 19
    assert _niceness(threading.get_native_id()) == before


def test_threads_of_a_session_have_lower_priority(tmp_path: Path) -> None:
    """The thread that opens the session keeps its priority."""
    files = resolve(str(FIXTURES / "bert-mean"))
    graph = prepare(files, read(files), cache_dir=tmp_path)
    own = _niceness(threading.get_native_id())
    before = _thread_ids()
    backend = OnnxBackend(graph.path, device="cpu", lanes=1, intra_op_threads=3)
    # One of the three threads of a run is the caller's. The one that opened the session may still
    # be listed for a moment, and other parts of the process may start threads at any time.
    started = _thread_ids() - before
    found = []
    for thread in started:
        with suppress(ProcessLookupError):
            found.append(_niceness(thread))
    assert found.count(max(own, 10)) >= 2
    assert _niceness(threading.get_native_id()) == own
    backend.close()
