"""What the process is, and what it uses of the machine."""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from embedgrpc.machine import process_usage
from embedgrpc.machine.gpu_memory import GpuMemory, GpuMemoryReader
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.telemetry.metrics import Reading


class ProcessFigures:
    """Reads them when they are asked for.

    Args:
        catalog: The models: GPUs are asked only where one runs on a GPU.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._gpus: GpuMemoryReader | None = None
        # Once: it is computed from clocks, and each change would look like a restart.
        self._started_at_s = process_usage.started_at_s()
        self._build = {
            "version": version("embedgrpc"),
            "python": platform.python_version(),
            "grpc": version("grpcio"),
            "onnxruntime": _onnxruntime_version(),
        }

    def read(self) -> Iterator[Reading]:
        """Return the metrics. Not on the event loop: GPUs may take milliseconds to answer."""
        yield Reading("embedgrpc.build.info", 1, self._build)
        yield Reading("process.cpu.time", process_usage.cpu_s(), {})
        yield Reading("process.memory.usage", process_usage.resident_bytes(), {})
        descriptors = process_usage.open_descriptors()
        yield Reading("process.open_file_descriptor.count", descriptors, {})
        yield Reading("process.open_file_descriptor.limit", process_usage.max_descriptors(), {})
        yield Reading("process.start.time", self._started_at_s, {})
        yield from self._read_gpus()

    def gpu_memory(self) -> Sequence[GpuMemory]:
        """Return the memory of the GPUs; nothing where no model runs on one."""
        if not any(one.loaded and one.loaded.device == "cuda" for one in self._catalog):
            return ()
        if self._gpus is None:
            self._gpus = GpuMemoryReader()
        return self._gpus.read()

    def _read_gpus(self) -> Iterator[Reading]:
        for one in self.gpu_memory():
            gpu = {"gpu": str(one.gpu)}
            yield Reading("embedgrpc.gpu.memory.used", one.used_bytes, gpu)
            yield Reading("embedgrpc.gpu.memory.total", one.total_bytes, gpu)


def _onnxruntime_version() -> str:
    # Not of the module: importing it takes longer than a start may.
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(name)
        except ModuleNotFoundError:
            continue
    return ""
