"""Checks whether an NVIDIA GPU can be used, without output on stderr.

ONNX Runtime lists its CUDA provider even on a machine without a GPU, and writes many lines to
stderr when a session then asks for it.
"""

import contextlib
import ctypes
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

from embedgrpc.libraries.onnx_runtime import onnxruntime

_DRIVER = "libcuda.so.1"

logger = logging.getLogger(__name__)


def find_cuda_obstacle(
    providers: Sequence[str], *, load: Callable[[str], Any] = ctypes.CDLL
) -> str:
    """Return one line about what keeps CUDA from being used; empty if nothing is known to.

    Args:
        providers: The execution providers of ONNX Runtime.
        load: Loads a shared library by name, or raises OSError.
    """
    if "CUDAExecutionProvider" not in providers:
        return "ONNX Runtime has no CUDA here: install onnxruntime-gpu in place of onnxruntime"
    try:
        library = load(_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver here ({_DRIVER}): install it, or run on the CPU"
    count = ctypes.c_int(0)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start: see what `nvidia-smi` says"
    if count.value == 0:
        return "the NVIDIA driver finds no GPU: make one visible, or run on the CPU"
    return ""


def preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries of Python packages, which the linker does not find."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    if said.getvalue():
        logger.warning("CUDA libraries are missing", extra={"said": said.getvalue().strip()})
