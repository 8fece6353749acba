"""Opens sessions of ONNX Runtime, and chooses one for each run."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.onnx_runtime import onnxruntime
from embedgrpc.machine.affinity import running_on
from embedgrpc.machine.thread_priority import lower_priority

# Levels of ONNX Runtime's own log, which goes to stderr and may contain token ids.
_LOG_ERRORS = 3
LOG_FATAL = 4
# Up to this size a graph may be open twice: up to a tenth more throughput for twice the memory.
_TWICE_OPEN_BYTES_MAX = 512 * 1024**2

_logger = logging.getLogger(__name__)


class Sessions:
    """A session for single runs, and a second one for runs that share the cores.

    Args:
        first: The first session.
        open_second: Opens the second session, in its own thread at the first need; None to use
            the first session only.
        core: The processors that a single run stays on, beside which the threads of the first
            session have theirs; none for all.
    """

    def __init__(
        self,
        first: Any,
        open_second: Callable[[], Any] | None,
        *,
        core: frozenset[int] = frozenset(),
    ) -> None:
        self._first = first
        self._core = core
        self._second: Any = None
        self._open_second = open_second
        self._opener: threading.Thread | None = None
        self._running = 0
        self._changing = threading.Lock()

    @contextmanager
    def for_run(self) -> Iterator[Any]:
        """Hold a session for a run; the first one while the second is being opened.

        A run that begins while no other is in progress stays on its core inside the `with` block.
        """
        with self._changing:
            session = self._first
            core = frozenset() if self._running else self._core
            if self._running and self._open_second is not None:
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

    def close(self) -> None:
        """Free the weights. No run is in progress."""
        if self._opener is not None:
            self._opener.join()
        del self._first, self._second

    def _open(self, open_second: Callable[[], Any]) -> None:
        try:
            self._second = open_second()
        except BackendError as error:
            # All runs keep sharing the first session.
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
