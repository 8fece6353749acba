"""Runs a graph with ONNX Runtime in this process, on the CPU or on an NVIDIA GPU."""

import functools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from embedgrpc.backends.base import (
    NO_CONTEXT,
    BackendError,
    DeviceError,
    FloatArray,
    IntArray,
    PaddedBatch,
    RunContext,
)
from embedgrpc.backends.cores import available_cores
from embedgrpc.backends.cuda import find_cuda_obstacle, preload_cuda_libraries
from embedgrpc.backends.priority import give_way

Device = Literal["cpu", "cuda", "auto"]

# Levels of ONNX Runtime's own log, which goes to stderr and may hold token ids.
_LOG_ERRORS = 3
_LOG_FATAL = 4
# Up to this size, products with weights are kept ready a second time, for runs that share the
# cores: up to a tenth more throughput for twice the memory.
_SHARED_SESSION_BYTES_MAX = 512 * 1024**2

_logger = logging.getLogger(__name__)


class OnnxBackend:
    """A graph that runs in this process.

    A run that is alone takes all threads. On the CPU one that begins while another runs takes its
    share of them, in a session of its own, opened when that first happens: threads of two runs
    that wait for each other on the same cores cost both a tenth of their speed. A large model has
    one session for all, whose weights are in memory once.
    """

    def __init__(
        self,
        graph_path: Path,
        *,
        device: Device,
        lanes: int = 0,
        intra_op_threads: int = 0,
        spin_duration_us: int = 10,
        gpu_mem_limit_bytes: int = 0,
    ) -> None:
        """Loads a graph.

        Args:
            graph_path: The ONNX file; its weights lie beside it.
            device: Where to run; "auto" takes a GPU where there is one that can be used.
            lanes: How many batches may run at once; 0 for 2 on the CPU, where a short batch then
                shares the cores with a long one instead of waiting for it, and 1 on a GPU.
            intra_op_threads: Threads that share the work of a run that is alone; 0 for one per
                core.
            spin_duration_us: How long an idle thread polls for work before it sleeps. Polling
                starts the next step sooner, and takes the core from everything else.
            gpu_mem_limit_bytes: Memory to take from the GPU at most; 0 for no limit.

        Raises:
            DeviceError: The device cannot be used.
            BackendError: The graph cannot be loaded.
        """
        _share_arena()
        threads = intra_op_threads or available_cores()
        options = _session_options(intra_op_threads=threads, spin_duration_us=spin_duration_us)
        self._device = _choose_device(device)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._device != "cpu":
            providers.insert(0, ("CUDAExecutionProvider", _cuda_options(gpu_mem_limit_bytes)))
        self._session = _load(graph_path, options, providers)
        if self._device != "cpu" and "CUDAExecutionProvider" not in self._session.get_providers():
            obstacle = (
                "CUDA could not be started: install the CUDA and cuDNN libraries with "
                "`pip install embedgrpc[cuda]`"
            )
            if device != "auto":
                raise DeviceError(obstacle)
            _logger.warning("running on the CPU", extra={"obstacle": obstacle})
            self._device = "cpu"
        self._lanes = lanes or (2 if self._device == "cpu" else 1)
        self._shared_threads = threads
        self._shared_session: Any = None
        self._opener: threading.Thread | None = None
        if self._device == "cpu" and self._lanes > 1 < threads and _is_small(graph_path):
            self._shared_threads = max(threads // self._lanes, 1)
            options = _session_options(
                intra_op_threads=self._shared_threads, spin_duration_us=spin_duration_us
            )
            self._opener = threading.Thread(
                target=self._open_shared_session,
                args=(graph_path, options),
                name=f"open-{graph_path.parent.name}",
                daemon=True,
            )
        self._running = 0
        self._changing = threading.Lock()
        self._input_names = tuple(value.name for value in self._session.get_inputs())
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _LOG_FATAL

    @property
    def lanes(self) -> int:
        """How many batches it can run at once."""
        return self._lanes

    @property
    def lanes_compete(self) -> bool:
        """Whether batches that run at once do so on the same cores, or on one GPU."""
        return self._device != "cpu" or self._lanes * self._shared_threads > available_cores()

    @property
    def parallelism(self) -> int:
        """How many batches it runs in the time of one: there is one machine, or one GPU."""
        return 1

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda:0"."""
        return self._device

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Runs the graph in the calling thread.

        Args:
            batch: What to run.
            context: For whom; a run that has begun is not ended early.

        Returns:
            For each name of `batch.outputs` a C-contiguous float32 array [batch, ...].

        Raises:
            BackendError: The run failed. The message holds the batch's shape, never its content.
        """
        del context
        inputs = self._select_inputs(batch)
        try:
            if self._device == "cpu":
                with self._session_for_run() as session:
                    outputs = session.run(list(batch.outputs), inputs, self._run_options)
            else:
                outputs = self._run_bound(inputs, batch.outputs)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a dozen unrelated classes
            # Its message may quote a token id, so neither it nor the chain is passed on.
            sequences, tokens = batch.input_ids.shape
            raise BackendError(
                f"ONNX Runtime failed on a batch of {sequences} sequences of {tokens} tokens: "
                f"{type(error).__name__}"
            ) from None
        return {
            name: np.ascontiguousarray(output, dtype=np.float32)
            for name, output in zip(batch.outputs, outputs, strict=True)
        }

    def close(self) -> None:
        """Frees the weights. No run is in progress."""
        if self._opener is not None and self._opener.ident is not None:
            self._opener.join()
        del self._session, self._shared_session

    @contextmanager
    def _session_for_run(self) -> Iterator[Any]:
        """Gives the session with all threads to a run that is alone."""
        with self._changing:
            session = self._session
            if self._running and self._opener is not None:
                session = self._shared_session or self._session
                if self._opener.ident is None:
                    self._opener.start()
            self._running += 1
        try:
            yield session
        finally:
            with self._changing:
                self._running -= 1

    def _open_shared_session(self, graph_path: Path, options: Any) -> None:
        try:
            self._shared_session = _load(graph_path, options, ["CPUExecutionProvider"])
        except BackendError as error:
            # All runs go on sharing the one there is.
            _logger.warning("no second session", extra={"problem": str(error)})

    def _select_inputs(self, batch: PaddedBatch) -> dict[str, IntArray]:
        arrays = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        return {name: arrays[name] for name in self._input_names}

    def _run_bound(
        self, inputs: Mapping[str, IntArray], names: Sequence[str]
    ) -> Sequence[FloatArray]:
        # One binding per run: lanes run at the same time.
        binding = self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, self._run_options)
        outputs: Sequence[FloatArray] = binding.copy_outputs_to_cpu()
        return outputs


def _session_options(*, intra_op_threads: int, spin_duration_us: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Patterns are kept per shape, and hardly any two batches have the same. The arena stays on
    # and grows as it does by default: over random shapes that took the least memory at its peak
    # (216 MiB for a model of 90; without it 370, grown only as requested 400), and was fastest.
    options.enable_mem_pattern = False
    if spin_duration_us > 0:
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_duration_us))
    else:
        # By default a thread polls for some 16 ms after each run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@functools.cache
def _share_arena() -> None:
    """Gives all sessions of the process one arena: what a run leaves, one of another reuses."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    onnxruntime.create_and_register_allocator(memory, None)


def _is_small(graph_path: Path) -> bool:
    """Tells whether the graph and its weights, which lie beside it, may be in memory twice."""
    size = sum(path.stat().st_size for path in graph_path.parent.iterdir() if path.is_file())
    return size <= _SHARED_SESSION_BYTES_MAX


def _cuda_options(mem_limit_bytes: int) -> dict[str, str]:
    options = {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        # The default multiplies with 10 bits of mantissa, which float32 is not.
        "use_tf32": "0",
    }
    if mem_limit_bytes > 0:
        options["gpu_mem_limit"] = str(mem_limit_bytes)
    return options


def _choose_device(device: Device) -> str:
    if device == "cpu":
        return "cpu"
    obstacle = find_cuda_obstacle(onnxruntime.get_available_providers())
    if not obstacle:
        return "cuda:0"
    if device == "cuda":
        raise DeviceError(obstacle)
    _logger.warning("running on the CPU", extra={"obstacle": obstacle})
    return "cpu"


def _load(graph_path: Path, options: Any, providers: Sequence[Any]) -> Any:
    if len(providers) > 1:
        preload_cuda_libraries()
    # A provider that cannot be loaded is written about by the process-wide log; what failed is
    # seen from the session, and told by our own error.
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    try:
        # The session's threads inherit what its maker's priority is.
        with ThreadPoolExecutor(1, initializer=give_way) as maker:
            return maker.submit(
                onnxruntime.InferenceSession, str(graph_path), options, providers=list(providers)
            ).result()
    except Exception as error:  # ONNX Runtime has a dozen unrelated classes
        raise BackendError(f"{graph_path} cannot be loaded: {error}") from error
    finally:
        onnxruntime.set_default_logger_severity(_LOG_ERRORS)
