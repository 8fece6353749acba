"""Reads how much memory of the GPUs is used, by all processes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of one GPU.

    Attributes:
        gpu: Its number, as NVIDIA's driver counts.
        used_bytes: What all processes use of it.
        total_bytes: All of it.
    """

    gpu: int
    used_bytes: int
    total_bytes: int


class GpuMemoryReader:
    """Asks NVIDIA's driver. Not for the event loop: it may take milliseconds.

    Without a driver there are no GPUs; that is no error.
    """

    def __init__(self) -> None:
        # Imported on demand: most servers have no GPU.
        import pynvml  # noqa: PLC0415 - see above

        self._nvml = pynvml
        self._count = 0
        try:
            pynvml.nvmlInit()
            self._count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            _logger.debug("the memory of GPUs is unknown", extra={"problem": str(error)})

    def read(self) -> Sequence[GpuMemory]:
        """Return the memory of each GPU that this process may see."""
        found = []
        for gpu in range(self._count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(gpu)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError:
                # One that was lost, or that is shared in a way that hides its memory.
                continue
            found.append(GpuMemory(gpu, int(memory.used), int(memory.total)))
        return found
