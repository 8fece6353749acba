"""Turns off what libraries send about those who use them, before they are loaded."""

import os

# Each is read once, when its library is loaded.
_VARIABLES = (
    # Otherwise the Linux wheels of ONNX Runtime keep an identifier of the device and a database of
    # events under the user's cache folder, and send the events to their vendor.
    "ORT_DISABLE_TELEMETRY",
    # Otherwise huggingface_hub asks the Hub which programs to look for, looks for them, and names
    # the one that it finds, and the version of PyTorch, with every request.
    "HF_HUB_DISABLE_TELEMETRY",
)


def send_nothing() -> None:
    """Tells libraries to send nothing about their user, except where a variable says otherwise.

    Call it before they are imported. Processes that are started later inherit it.
    """
    for name in _VARIABLES:
        # An empty variable says nothing.
        if not os.environ.get(name):
            os.environ[name] = "1"
