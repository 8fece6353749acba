"""Opens sessions of ONNX Runtime, and chooses one for each run."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.onnx_runtime import onnxruntime
from embedgrpc.machine.affinity import PinnedThreads, running_on
from embedgrpc.machine.thread_priority import give_way, lower_priority

# Levels of ONNX Runtime's own log, which goes to stderr and may contain token ids.
_LOG_ERRORS = 3
LOG_FATAL = 4
# Up to this size a graph may be open twice: up to a tenth more throughput for twice the memory.
_TWICE_OPEN_BYTES_MAX = 512 * 1024**2

# Runs that follow each other sooner are those of a stream, or of many calls.
_IDLE_S_MIN = 0.001

_logger = logging.getLogger(__name__)


class _GivingWay:
    """Runs a session in threads that give way to all others, one for each run.

    The threads that wait for them keep their priority, and so does all work around a run: a thread
    that gives way must not hold the interpreter lock for long.

    Args:
        session: The session.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, *arguments: Any) -> Any:
        """Run the session; see ONNX Runtime."""
        return self._start(arguments).result()

    def _start(self, arguments: Sequence[Any]) -> Future[Any]:
        outcome: Future[Any] = Future()

        def run() -> None:
            try:
                give_way()
                outcome.set_result(self._session.run(*arguments))
            except BaseException as error:  # noqa: BLE001 - a lane waits
                # The frames refer to the outcome.
                outcome.set_exception(error.with_traceback(None))

        # A daemon, as lanes are. Beside a busy program a run may take minutes, and neither closing
        # nor the end of the process may wait for it.
        threading.Thread(target=run, name="give-way", daemon=True).start()
        return outcome


class Sessions:
    """A session for single runs, and a second one for runs that share the cores or give way.

    Args:
        first: The first session.
        open_second: Opens the second session, in its own thread at the first need; None to use
            the first session only.
        core: The processors that a short run stays on if it is alone; none for all.
        threads: The other threads of the first session, which have cores of their own meanwhile.
    """

    def __init__(
        self,
        first: Any,
        open_second: Callable[[], Any] | None,
        *,
        core: frozenset[int] = frozenset(),
        threads: PinnedThreads | None = None,
    ) -> None:
        self._first = first
        self._core = core
        self._threads = threads or PinnedThreads({})
        self._second: Any = None
        self._open_second = open_second
        self._opener: threading.Thread | None = None
        self._running = 0
        # When the last run ended, in seconds of `time.monotonic`.
        self._ended = 0.0
        self._changing = threading.Lock()

    @property
    def may_have_second(self) -> bool:
        """Whether there is a second session, or can be one as far as is known."""
        return self._open_second is not None

    @contextmanager
    def for_run(self, *, is_short: bool, gives_way: bool = False) -> Iterator[Any]:
        """Hold a session for a run; the first one while the second is being opened.

        Args:
            is_short: Whether to keep the threads on cores of their own inside the `with` block, if
                no other run is in progress or has just ended. Under load they are better off where
                the kernel puts them.
            gives_way: Whether the run leaves the cores to those that do not, which then go on as if
                it was not in progress. It does not as long as the second session is being opened.
        """
        if gives_way and self._second is not None:
            yield _GivingWay(self._second)
            return
        with self._changing:
            session = self._first
            core: frozenset[int] = frozenset()
            if not self._running:
                is_lone = is_short and time.monotonic() - self._ended >= _IDLE_S_MIN
                core = self._core if is_lone else core
                self._threads.pin(pinned=is_lone)
            if (self._running or gives_way) and self._open_second is not None:
                session = self._second or self._first
                if self._opener is None:
                    self._opener = threading.Thread(
                        target=self._open, args=(self._open_second,), daemon=True
                    )
                    self._opener.start()
            self._running += 1
        try:
            with running_on(core):
                yield session
        finally:
            with self._changing:
                self._running -= 1
                self._ended = time.monotonic()

    def close(self) -> None:
        """Free the weights, once the runs in progress have ended."""
        if self._opener is not None:
            self._opener.join()
        del self._first, self._second

    def _open(self, open_second: Callable[[], Any]) -> None:
        try:
            self._second = open_second()
        except BackendError as error:
            # All runs keep sharing the first session.
            self._open_second = None
            _logger.warning("no second session", extra={"problem": str(error)})


def open_session(
    graph_path: Path,
    *,
    threads: int,
    spin_duration_us: int,
    cores: Sequence[frozenset[int]] = (),
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> Any:
    """Open a session.

    Args:
        graph_path: The ONNX file; its weights lie beside it.
        threads: Threads that share the work of one run, the caller's included.
        spin_duration_us: How long an idle thread polls for work before it sleeps.
        cores: The processors of each thread, the caller's first; none to let the kernel choose.
        providers: ONNX Runtime's execution providers, in the order of preference.

    Raises:
        BackendError: The graph cannot be loaded.
    """
    _share_arena()
    options = _session_options(intra_op_threads=threads, spin_duration_us=spin_duration_us)
    if own := cores[1:]:
        # ONNX Runtime counts processors from 1.
        affinities = (",".join(str(one + 1) for one in sorted(core)) for core in own)
        options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(affinities))
    # The process-wide log reports a provider that cannot be loaded. The session shows the same, and
    # the caller reports it.
    onnxruntime.set_default_logger_severity(LOG_FATAL)
    try:
        # The session's threads inherit the priority of the thread that makes it.
        with ThreadPoolExecutor(1, initializer=lower_priority) as maker:
            return maker.submit(
                onnxruntime.InferenceSession, str(graph_path), options, providers=list(providers)
            ).result()
    except Exception as error:  # ONNX Runtime has a dozen unrelated classes
        raise BackendError(f"{graph_path} cannot be loaded: {error}") from error
    finally:
        onnxruntime.set_default_logger_severity(_LOG_ERRORS)


def may_be_open_twice(graph_path: Path) -> bool:
    """Return whether the graph and the weights beside it are small enough to be open twice."""
    size = sum(path.stat().st_size for path in graph_path.parent.iterdir() if path.is_file())
    return size <= _TWICE_OPEN_BYTES_MAX


def _session_options(*, intra_op_threads: int, spin_duration_us: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Patterns are kept per shape, and few batches have the same shape. The arena stays on and grows
    # by default: over random shapes it was fastest, with the lowest peak (216 MiB for a model of
    # 90 MiB; 370 without the arena, 400 if it grows only as requested).
    options.enable_mem_pattern = False
    if spin_duration_us > 0:
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_duration_us))
    else:
        # The default is to poll for some 16 ms after each run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@functools.cache
def _share_arena() -> None:
    """Give all sessions of the process one arena, so that they reuse each other's memory."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    onnxruntime.create_and_register_allocator(memory, None)
