import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from embedgrpc.backends.cuda import find_cuda_obstacle

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class Driver:
    """A fake of NVIDIA's driver library."""

    def __init__(self, *, init: int, gpus: int) -> None:
        self._init = init
        self._gpus = gpus

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - the driver's own name
        """Start the driver."""
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - the driver's own name
        """Count the GPUs."""
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self._gpus
        return 0


def _found(driver: Driver) -> Callable[[str], Driver]:
    return lambda _name: driver


def _missing(name: str) -> Driver:
    raise OSError(name)


@pytest.mark.parametrize(
    ("providers", "load", "message"),
    [
        (PROVIDERS[1:], _found(Driver(init=0, gpus=1)), "install onnxruntime-gpu"),
        (PROVIDERS, _missing, "there is no NVIDIA driver here (libcuda.so.1)"),
        (PROVIDERS, _found(Driver(init=999, gpus=1)), "the NVIDIA driver does not start"),
        (PROVIDERS, _found(Driver(init=0, gpus=0)), "the NVIDIA driver finds no GPU"),
    ],
)
def test_what_keeps_cuda_from_being_used(
    providers: list[str], load: Callable[[str], Driver], message: str
) -> None:
    """Each missing part has its own message."""
    assert message in find_cuda_obstacle(providers, load=load)


def test_nothing_keeps_cuda_from_being_used() -> None:
    """With the provider, a driver and a GPU there is no obstacle."""
    assert find_cuda_obstacle(PROVIDERS, load=_found(Driver(init=0, gpus=1))) == ""
