import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embedgrpc.backends import onnx, onnx_sessions
from embedgrpc.backends.base import Backend, BackendError, DeviceError, PaddedBatch, RunContext
from embedgrpc.backends.cuda import find_cuda_obstacle
from embedgrpc.backends.onnx import Device, OnnxBackend
from embedgrpc.machine.affinity import thread_ids
from embedgrpc.machine.cores import available_cores, processors_by_core
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from embedgrpc.server.settings.latency_modes import LATENCY_MODES, LatencyMode
from tests.models.runner import FIXTURES, Runner

# A share of a core, and how long threads may take to come to rest.
_REST_SHARE = 0.005
_REST_S_MAX = 60.0


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedding model's graph."""
    files = resolve(str(FIXTURES / "bert-mean"))
    return prepare(files, read(files), cache_dir=tmp_path_factory.mktemp("graphs")).path


def _batch(*outputs: str, token_id: int = 7, sequences: int = 3, tokens: int = 5) -> PaddedBatch:
    ids = np.full((sequences, tokens), token_id, dtype=np.int64)
    return PaddedBatch(ids, np.ones_like(ids), np.zeros_like(ids), outputs)


def test_a_run_returns_the_wanted_outputs(graph_path: Path) -> None:
    """A run returns only the wanted outputs, float32 in C order, one row per sequence."""
    backend: Backend = OnnxBackend(graph_path, device="cpu")
    outputs = backend.run(_batch("pooled_embedding"))
    assert list(outputs) == ["pooled_embedding"]
    outputs = backend.run(_batch("sentence_embedding", "pooled_embedding"))
    assert list(outputs) == ["sentence_embedding", "pooled_embedding"]
    for values in outputs.values():
        assert values.shape == (3, 32)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
    assert (backend.device, backend.lanes) == ("cpu", 2)


def test_inputs_that_a_graph_lacks_are_left_out(tmp_path: Path) -> None:
    """A model without token types runs without them."""
    runner = Runner.load(FIXTURES / "cross-xlmr", tmp_path)
    assert "token_type_ids" not in runner.graph.inputs
    assert runner.backend.run(_batch("logits"))["logits"].shape == (3, 1)


@pytest.mark.parametrize(
    "batch",
    [_batch("sentence_embedding", token_id=987654), _batch("no_such_output", token_id=987)],
    ids=["token", "output"],
)
def test_a_failed_run_reveals_no_input(
    graph_path: Path, batch: PaddedBatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error has the batch's shape; neither it, its chain nor stderr contains a token id."""
    backend = OnnxBackend(graph_path, device="cpu")
    with pytest.raises(BackendError, match="a batch of 3 sequences of 5 tokens") as caught:
        backend.run(batch)
    assert "987" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert capfd.readouterr() == ("", "")
    assert backend.run(_batch("sentence_embedding"))


def test_lanes_run_at_once(graph_path: Path) -> None:
    """Threads that share a backend get what one gets."""
    backend = OnnxBackend(graph_path, device="cpu", lanes=4, intra_op_threads=1)
    assert backend.lanes == 4
    batches = [
        _batch("sentence_embedding", token_id=5 + n, sequences=1 + n % 5, tokens=3 + n)
        for n in range(40)
    ]
    alone = [backend.run(batch)["sentence_embedding"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: backend.run(b)["sentence_embedding"], batches * 3))
    for row, wanted in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(row, wanted)


def test_runs_at_the_same_time_share_the_threads(graph_path: Path) -> None:
    """A single run uses all threads, and a run beside another one uses its share."""
    backend = OnnxBackend(graph_path, device="cpu", lanes=3, intra_op_threads=6)

    def threads(session: Any) -> int:
        return int(session.get_session_options().intra_op_num_threads)

    sessions = backend._sessions
    with sessions.for_run(is_short=False) as first:
        with sessions.for_run(is_short=False) as early:
            assert early is first  # the second session is not open yet
        assert sessions._opener is not None
        sessions._opener.join()
        with sessions.for_run(is_short=False) as second, sessions.for_run(is_short=False) as third:
            assert [threads(one) for one in (first, second, third)] == [6, 2, 2]
        with sessions.for_run(is_short=False) as fourth:
            assert threads(fourth) == 2
    with sessions.for_run(is_short=False) as alone:
        assert threads(alone) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes here")
def test_a_run_that_gives_way_leaves_the_cores_to_others(
    graph_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in the second session, below all other threads, and others run as if alone."""
    # Also where the tests themselves have a CPU quota.
    monkeypatch.setattr(onnx, "can_give_way", lambda: True)
    backend = OnnxBackend(graph_path, device="cpu", lanes=2, intra_op_threads=2)
    assert backend.can_give_way
    sessions = backend._sessions
    batch = _batch("sentence_embedding")
    wanted = backend.run(batch)["sentence_embedding"]
    giving_way = RunContext(gives_way=True)
    backend.run(batch, giving_way)  # in the first session: the second one is not open yet
    assert sessions._opener is not None
    sessions._opener.join()
    priorities: list[tuple[int, int]] = []
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    second = sessions._second

    class Watched:
        def run(self, *arguments: Any) -> Any:
            thread = threading.get_native_id()
            priorities.append((os.getpriority(os.PRIO_PROCESS, thread), thread))
            return second.run(*arguments)

    monkeypatch.setattr(sessions, "_second", Watched())
    given_way = backend.run(batch, giving_way)["sentence_embedding"]
    np.testing.assert_array_equal(given_way, wanted)
    ((niceness, thread),) = priorities
    assert niceness == 19
    assert thread != threading.get_native_id()
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    with (
        sessions.for_run(is_short=False, gives_way=True),
        sessions.for_run(is_short=False) as beside,
    ):
        assert beside is backend._session
    monkeypatch.undo()
    backend.close()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes here")
def test_a_run_that_gives_way_holds_up_no_end() -> None:
    """Closing does not wait for it, nor does the end of the process."""
    begun, may_end, ended = Event(), Event(), Event()
    daemons: list[bool] = []

    class Held:
        def run(self, *_: Any) -> None:
            daemons.append(threading.current_thread().daemon)
            begun.set()
            may_end.wait()

    sessions = onnx_sessions.Sessions(Held(), Held)
    with sessions.for_run(is_short=False, gives_way=True):
        assert sessions._opener is not None
        sessions._opener.join()

    def run() -> None:
        with sessions.for_run(is_short=False, gives_way=True) as session:
            session.run()
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert begun.wait(60)
    closing = threading.Thread(target=sessions.close, daemon=True)
    closing.start()
    closing.join(60)
    is_closed = not closing.is_alive()
    may_end.set()
    assert ended.wait(60)
    assert is_closed
    assert daemons == [True]


def test_the_error_of_a_run_that_gives_way_reaches_its_lane() -> None:
    """It is the session's own error."""

    class Failing:
        def run(self, *_: Any) -> None:
            raise ValueError("no")

    sessions = onnx_sessions.Sessions(Failing(), Failing)
    with sessions.for_run(is_short=False, gives_way=True):
        assert sessions._opener is not None
        sessions._opener.join()
    with (
        sessions.for_run(is_short=False, gives_way=True) as session,
        pytest.raises(ValueError, match="no"),
    ):
        session.run()
    sessions.close()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes here")
def test_no_run_gives_way_without_the_second_session(
    graph_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened, for example because the cache was cleared meanwhile."""
    monkeypatch.setattr(onnx, "can_give_way", lambda: True)
    copy = tmp_path / "graph"
    shutil.copytree(graph_path.parent, copy)
    backend = OnnxBackend(copy / graph_path.name, device="cpu", lanes=2, intra_op_threads=2)
    assert backend.can_give_way
    shutil.rmtree(copy)
    giving_way = RunContext(gives_way=True)
    assert backend.run(_batch("sentence_embedding"), giving_way)
    assert backend._sessions._opener is not None
    backend._sessions._opener.join()
    assert not backend.can_give_way
    assert backend.run(_batch("sentence_embedding"), giving_way)
    backend.close()


@pytest.mark.parametrize(("lanes", "threads"), [(1, 2), (2, 1), (2, 4)])
def test_only_a_session_with_one_thread_gives_way(
    graph_path: Path, lanes: int, threads: int
) -> None:
    """Elsewhere, a run that is told to is like any other."""
    backend = OnnxBackend(graph_path, device="cpu", lanes=lanes, intra_op_threads=threads)
    assert not backend.can_give_way
    assert backend.run(_batch("sentence_embedding"), RunContext(gives_way=True))
    assert backend._sessions._opener is None


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_a_short_run_alone_has_its_threads_on_cores_of_their_own(graph_path: Path) -> None:
    """The calling thread has the first core, each other thread the next; under load none has."""
    everywhere = os.sched_getaffinity(0)
    cores = processors_by_core()
    before = _affinities()
    backend = OnnxBackend(graph_path, device="cpu", intra_op_threads=len(cores))
    sessions = backend._sessions

    def pinned() -> dict[frozenset[int], int]:
        added = _affinities() - before
        return {core: added[core] for core in cores[1:]}

    alone, free = dict.fromkeys(cores[1:], 1), dict.fromkeys(cores[1:], 0)
    with sessions.for_run(is_short=True):
        assert os.sched_getaffinity(0) == cores[0]
        assert pinned() == alone
        # Threads inherit where they may run, but lanes were there before.
        with ThreadPoolExecutor(
            1, initializer=os.sched_setaffinity, initargs=(0, everywhere)
        ) as pool:

            def run_beside() -> set[int]:
                with sessions.for_run(is_short=True):
                    return os.sched_getaffinity(0)

            assert pool.submit(run_beside).result() == everywhere
    assert os.sched_getaffinity(0) == everywhere
    # As directly after another run, however slow this machine is.
    sessions._ended = math.inf
    with sessions.for_run(is_short=True):
        assert os.sched_getaffinity(0) == everywhere
        assert pinned() == free
    sessions._ended = 0.0
    with sessions.for_run(is_short=True):
        assert pinned() == alone
    sessions._ended = 0.0
    with sessions.for_run(is_short=False):
        assert os.sched_getaffinity(0) == everywhere
        assert pinned() == free


def test_threads_go_where_the_kernel_puts_them_if_not_pinned(graph_path: Path) -> None:
    """Nor are they pinned if there are more than cores."""
    before = _affinities()
    unpinned = OnnxBackend(graph_path, device="cpu", pin_threads=False)
    more = OnnxBackend(graph_path, device="cpu", intra_op_threads=available_cores() + 1)
    everywhere = os.sched_getaffinity(0)
    assert set(_affinities() - before) <= {frozenset(everywhere)}
    for backend in (unpinned, more):
        with backend._sessions.for_run(is_short=True):
            assert os.sched_getaffinity(0) == everywhere


def _affinities() -> Counter[frozenset[int]]:
    """Count the threads of this process by where they may run."""
    found: Counter[frozenset[int]] = Counter()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found[frozenset(os.sched_getaffinity(int(thread.name)))] += 1
    return found


@pytest.mark.parametrize(("lanes", "size_max"), [(1, 2**40), (2, 0)])
def test_weights_are_in_memory_once(
    graph_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, size_max: int
) -> None:
    """A model with one lane, or a large one, has a single session."""
    monkeypatch.setattr(onnx_sessions, "_TWICE_OPEN_BYTES_MAX", size_max)
    backend = OnnxBackend(graph_path, device="cpu", lanes=lanes, intra_op_threads=4)
    with (
        backend._sessions.for_run(is_short=False) as first,
        backend._sessions.for_run(is_short=False) as second,
    ):
        assert first is second


@pytest.mark.parametrize(("excess", "twice"), [(0, True), (1, False)])
def test_a_graph_of_up_to_512_mib_is_opened_twice(
    tmp_path: Path, excess: int, *, twice: bool
) -> None:
    """The size counts the weights beside the graph."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with (tmp_path / "model.weights").open("wb") as weights:
        weights.truncate(512 * 1024**2 - len(b"graph") + excess)
    assert onnx_sessions.may_be_open_twice(tmp_path / "model.onnx") is twice


def test_bound_inputs_and_outputs_change_nothing(
    graph_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run as on a GPU, which binds its inputs and outputs, answers as a plain run."""
    backend = OnnxBackend(graph_path, device="cpu")
    names = ("sentence_embedding", "pooled_embedding")
    plain = backend.run(_batch(*names))
    monkeypatch.setattr(backend, "_device", "cuda:0")
    bound = backend.run(_batch(*names))
    for name in names:
        np.testing.assert_array_equal(bound[name], plain[name])


@pytest.mark.parametrize(
    ("lanes", "threads", "compete"), [(1, 2, False), (2, 2, False), (4, 2, True), (2, 1, False)]
)
def test_lanes_compete_where_they_have_more_threads_than_there_are_cores(
    graph_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, threads: int, *, compete: bool
) -> None:
    """Lanes compete if their threads outnumber the cores."""
    monkeypatch.setattr(onnx, "available_cores", lambda: 2)
    backend = OnnxBackend(graph_path, device="cpu", lanes=lanes, intra_op_threads=threads)
    assert backend.lanes_compete is compete


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"model\.onnx cannot be loaded"):
        OnnxBackend(path, device="cpu")


@pytest.mark.parametrize("spin_duration_us", [0, 50])
def test_idle_threads_poll_as_long_as_set(graph_path: Path, spin_duration_us: int) -> None:
    """Polling is off unless a duration is set."""
    backend = OnnxBackend(graph_path, device="cpu", spin_duration_us=spin_duration_us)
    options = backend._session.get_session_options()
    allowed = options.get_session_config_entry("session.intra_op.allow_spinning")
    assert allowed == str(int(spin_duration_us > 0))
    if spin_duration_us:
        duration = options.get_session_config_entry("session.intra_op.spin_duration_us")
        assert duration == str(spin_duration_us)
    assert backend.run(_batch("sentence_embedding"))


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_threads_rest_in_every_mode(graph_path: Path, mode: LatencyMode) -> None:
    """However long they spin after a run, they take no CPU time when none comes."""
    threads = LATENCY_MODES[mode]
    before = thread_ids()
    backend = OnnxBackend(
        graph_path,
        device="cpu",
        intra_op_threads=2,
        spin_duration_us=threads.spin_duration_us,
        pin_threads=threads.pin_threads,
    )
    assert backend.run(_batch("sentence_embedding"))

    def used_ns() -> dict[int, int]:
        used = {}
        for one in thread_ids() - before:
            # The thread that opened the session ends meanwhile.
            with suppress(OSError):
                stat = Path(f"/proc/self/task/{one}/schedstat").read_text()
                used[one] = int(stat.split()[0])
        return used

    quiet, window_s, until = Event(), 0.2, time.monotonic() + _REST_S_MAX
    while time.monotonic() < until:
        earlier = used_ns()
        quiet.wait(window_s)
        more = [used - earlier[one] for one, used in used_ns().items() if one in earlier]
        assert more, "the session has no thread of its own"
        if sum(more) < _REST_SHARE * window_s * 1e9:
            return
    pytest.fail(f"the threads still spin after {_REST_S_MAX} s")


def test_threads_of_a_run(graph_path: Path) -> None:
    """The number of threads is the one set, or at least one."""
    told = OnnxBackend(graph_path, device="cpu", intra_op_threads=3)
    assert told._session.get_session_options().intra_op_num_threads == 3
    found = OnnxBackend(graph_path, device="cpu")
    assert found._session.get_session_options().intra_op_num_threads >= 1


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_nothing_is_written_to_the_console(graph_path: Path, device: Device) -> None:
    """Loading and running write nothing to stdout and stderr, with and without CUDA."""
    code = (
        "import logging, numpy as np\n"
        "from pathlib import Path\n"
        "from embedgrpc.backends.base import PaddedBatch\n"
        "from embedgrpc.backends.onnx import OnnxBackend\n"
        "logging.getLogger().addHandler(logging.NullHandler())\n"
        f"backend = OnnxBackend(Path({str(graph_path)!r}), device={device!r})\n"
        "ids = np.ones((2, 4), dtype=np.int64)\n"
        "backend.run(PaddedBatch(ids, ids, ids * 0, ('sentence_embedding',)))\n"
        "backend.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def _no_driver(name: str) -> None:
    raise OSError(name)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine look like one without a GPU."""
    obstacle = find_cuda_obstacle(["CUDAExecutionProvider"], load=_no_driver)
    monkeypatch.setattr("embedgrpc.backends.onnx.find_cuda_obstacle", lambda _providers: obstacle)


@pytest.mark.usefixtures("no_gpu")
def test_cuda_without_a_gpu_is_refused(graph_path: Path) -> None:
    """A configured GPU that is missing is an error of one line with the way out."""
    with pytest.raises(DeviceError, match="no NVIDIA driver here") as caught:
        OnnxBackend(graph_path, device="cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_says_so(graph_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The automatic choice falls back to the CPU and says why; it warns only if there is a GPU."""
    with caplog.at_level(logging.INFO):
        backend = OnnxBackend(graph_path, device="auto")
    assert backend.device == "cpu"
    (record,) = caplog.records
    assert record.getMessage() == "running on the CPU"
    assert "no NVIDIA driver here" in record.__dict__["obstacle"]
    assert record.levelno == (logging.WARNING if Path("/dev/nvidia0").exists() else logging.INFO)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    or not find_cuda_obstacle(onnxruntime.get_available_providers()),
    reason="needs a build with CUDA on a machine without a GPU",
)
def test_cuda_that_does_not_start(
    graph_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If CUDA does not load, "cuda" is refused and "auto" uses the CPU, and stderr stays empty."""
    monkeypatch.setattr("embedgrpc.backends.onnx.find_cuda_obstacle", lambda _providers: "")
    with pytest.raises(DeviceError, match="CUDA could not be started: install"):
        OnnxBackend(graph_path, device="cuda")
    with caplog.at_level(logging.WARNING):
        backend = OnnxBackend(graph_path, device="auto")
    assert backend.device == "cpu"
    assert "running on the CPU" in caplog.messages
    assert capfd.readouterr() == ("", "")
    assert backend.run(_batch("sentence_embedding"))
