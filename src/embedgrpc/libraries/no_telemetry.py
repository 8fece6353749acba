"""Turns off the telemetry of libraries before they are loaded."""

import os

# Each is read once, when its library is loaded.
_VARIABLES = (
    # Else the Linux wheels of ONNX Runtime keep an identifier of the device and a database of
    # events under the user's cache folder, and send the events to their vendor.
    "ORT_DISABLE_TELEMETRY",
    # Else huggingface_hub asks the Hub which programs to look for, and sends the name of the one
    # that it finds, and the version of PyTorch, with every request.
    "HF_HUB_DISABLE_TELEMETRY",
)


def disable_telemetry() -> None:
    """Set the variables that turn telemetry off, unless they are set already.

    Call it before the libraries are imported. Child processes inherit the variables.
    """
    for name in _VARIABLES:
        # An empty variable counts as unset.
        if not os.environ.get(name):
            os.environ[name] = "1"
