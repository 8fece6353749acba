"""ONNX Runtime, loaded with its telemetry turned off.

Everything imports it from here: whoever imports it first decides for the whole process.
"""

from embedgrpc.libraries.silence import send_nothing

send_nothing()

import onnxruntime  # noqa: E402 - it reads its environment when it is loaded
from onnxruntime.capi.onnxruntime_pybind11_state import (  # noqa: E402 - see above
    NotImplemented as NoKernelError,
)

__all__ = ["NoKernelError", "onnxruntime"]
