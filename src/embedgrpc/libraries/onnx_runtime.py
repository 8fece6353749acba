"""ONNX Runtime, loaded with its telemetry turned off.

All modules import it from here: the first import decides for the whole process.
"""

from embedgrpc.libraries.no_telemetry import disable_telemetry

disable_telemetry()

import onnxruntime  # noqa: E402 - it reads the environment when it is loaded
from onnxruntime.capi.onnxruntime_pybind11_state import (  # noqa: E402 - see above
    NotImplemented as NoKernelError,
)

__all__ = ["NoKernelError", "onnxruntime"]
