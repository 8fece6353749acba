"""Runs a graph with ONNX Runtime in this process, on the CPU or an NVIDIA GPU."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedgrpc.backends.base import NO_CONTEXT, BackendError, DeviceError, PaddedBatch, RunContext
from embedgrpc.backends.cuda import find_cuda_obstacle, preload_cuda_libraries
from embedgrpc.backends.onnx_sessions import LOG_FATAL, Sessions, may_be_open_twice, open_session
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.libraries.onnx_runtime import onnxruntime
from embedgrpc.machine.affinity import core_of_each_thread, thread_ids, threads_on
from embedgrpc.machine.cores import available_cores
from embedgrpc.machine.thread_priority import can_give_way

Device = Literal["cpu", "cuda", "auto"]

_logger = logging.getLogger(__name__)
# Present on Linux if the kernel drives an NVIDIA GPU.
_GPU_DEVICE = Path("/dev/nvidia0")


class OnnxBackend:
    """A graph that runs in this process.

    A single run uses all threads. On the CPU, a run that begins while another is in progress uses
    its share of the threads in a second session, opened at the first such run: if the threads of
    two runs wait for each other on the same cores, both lose a tenth of their speed. A large model
    has one session only, so that its weights are in memory once.
    """

    def __init__(
        self,
        graph_path: Path,
        *,
        device: Device,
        lanes: int = 0,
        intra_op_threads: int = 0,
        spin_duration_us: int = 100,
        pin_threads: bool = True,
        gpu_mem_limit_bytes: int = 0,
    ) -> None:
        """Load a graph.

        Args:
            graph_path: The ONNX file; its weights lie beside it.
            device: The device; "auto" is a GPU if one can be used.
            lanes: The number of batches that may run at once; 0 for 1 on a GPU and 2 on the CPU,
                where a short batch then shares the cores with a long one instead of waiting for it.
            intra_op_threads: Threads that share the work of a single run; 0 for one per core.
            spin_duration_us: How long an idle thread polls for work before it sleeps. Polling
                starts the next step sooner, but keeps the core busy.
            pin_threads: Whether each thread of a batch of one sequence that runs alone has a core
                of its own, where there are as many threads as cores.
            gpu_mem_limit_bytes: The most memory to use on the GPU; 0 for no limit.

        Raises:
            DeviceError: The device cannot be used.
            BackendError: The graph cannot be loaded.
        """
        threads = intra_op_threads or available_cores()
        self._device = _choose_device(device)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._device != "cpu":
            preload_cuda_libraries()
            providers.insert(0, ("CUDAExecutionProvider", _cuda_options(gpu_mem_limit_bytes)))
        cores = core_of_each_thread(threads) if self._device == "cpu" and pin_threads else ()
        present = thread_ids()
        self._session = open_session(
            graph_path,
            threads=threads,
            spin_duration_us=spin_duration_us,
            cores=cores,
            providers=providers,
        )
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
        self._threads_at_once = self._lanes * threads
        open_second: Callable[[], Any] | None = None
        self._can_give_way = False
        if self._device == "cpu" and self._lanes > 1 < threads and may_be_open_twice(graph_path):
            share = max(threads // self._lanes, 1)
            # Further threads of the session would not give way.
            self._can_give_way = share == 1 and can_give_way()
            self._threads_at_once = self._lanes * share
            open_second = partial(
                open_session, graph_path, threads=share, spin_duration_us=spin_duration_us
            )
        self._sessions = Sessions(
            self._session,
            open_second,
            core=cores[0] if cores else frozenset(),
            threads=threads_on(cores[1:], but=present),
        )
        self._input_names = tuple(value.name for value in self._session.get_inputs())
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = LOG_FATAL

    @property
    def lanes(self) -> int:
        """The number of batches that can run at once."""
        return self._lanes

    @property
    def lanes_compete(self) -> bool:
        """Whether batches share cores, or one GPU."""
        return self._device != "cpu" or self._threads_at_once > available_cores()

    @property
    def can_give_way(self) -> bool:
        """Whether there may be a second session whose only thread is that of the run."""
        return self._can_give_way and self._sessions.may_have_second

    @property
    def parallelism(self) -> int:
        """1: there is one machine, or one GPU."""
        return 1

    @property
    def device(self) -> str:
        """The device: "cpu" or "cuda:0"."""
        return self._device

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Run the graph in the calling thread.

        Args:
            batch: The sequences and the wanted outputs.
            context: Whether the run gives way to others; it is not ended early.

        Returns:
            For each name of `batch.outputs` a C-contiguous float32 array [batch, ...].

        Raises:
            BackendError: The run failed. The message has the batch's shape, never its content.
        """
        inputs = self._select_inputs(batch)
        try:
            if self._device == "cpu":
                is_short = len(batch.input_ids) == 1
                with self._sessions.for_run(
                    is_short=is_short, gives_way=context.gives_way and self.can_give_way
                ) as session:
                    outputs = session.run(list(batch.outputs), inputs, self._run_options)
            else:
                outputs = self._run_bound(inputs, batch.outputs)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a dozen unrelated classes
            # Drop its message and the chain: they may quote a token id.
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
        """Free the weights. No run is in progress."""
        self._sessions.close()
        del self._session

    def _select_inputs(self, batch: PaddedBatch) -> dict[str, IntArray]:
        arrays: dict[str, IntArray] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        if "task_id" in self._input_names:
            arrays["task_id"] = np.full(len(batch.input_ids), batch.task, np.int64)
        if "prompt_tokens" in self._input_names:
            none = np.zeros(len(batch.input_ids), np.int64)
            arrays["prompt_tokens"] = none if batch.prompt_tokens is None else batch.prompt_tokens
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


def _cuda_options(mem_limit_bytes: int) -> dict[str, str]:
    options = {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        # The default multiplies with a mantissa of 10 bits instead of the 23 of float32.
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
    # Without a GPU the CPU is what the user expects.
    level = logging.WARNING if _GPU_DEVICE.exists() else logging.INFO
    _logger.log(level, "running on the CPU", extra={"obstacle": obstacle})
    return "cpu"
