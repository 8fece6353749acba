"""Finds out, without a word on stderr, whether an NVIDIA GPU can be used.

ONNX Runtime lists its CUDA provider wherever it was built with one, and complains at length when
a session then asks for it on a machine without a GPU.
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
    """Finds what keeps CUDA from being used.

    Args:
        providers: What ONNX Runtime was built with.
        load: Loads a shared library by name; OSError where there is none.

    Returns:
        One line that says what is missing; empty where nothing is known to be.
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
    """Loads the CUDA and cuDNN libraries that are installed as Python packages.

    Those of the system are found without this; those of packages lie where the linker does not
    look.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    if said.getvalue():
        logger.warning("CUDA libraries are missing", extra={"said": said.getvalue().strip()})
