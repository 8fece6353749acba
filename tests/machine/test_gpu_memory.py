"""The memory of GPUs, where there are some."""

import shutil
import subprocess

import pytest

from embedgrpc.machine.gpu_memory import GpuMemoryReader


def test_a_machine_without_gpus_has_no_memory_of_them() -> None:
    """No driver is no error."""
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver of NVIDIA")
    assert GpuMemoryReader().read() == []


def test_the_driver_says_the_same() -> None:
    """Total and number of the GPUs are those of nvidia-smi; used is more than nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("this machine has no driver of NVIDIA")
    listed = subprocess.run(
        [program, "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    expected = [tuple(map(int, line.split(","))) for line in listed.splitlines()]
    found = GpuMemoryReader().read()
    assert [one.gpu for one in found] == [gpu for gpu, _ in expected]
    for one, (_, total_mib) in zip(found, expected, strict=True):
        assert one.total_bytes / 2**20 == pytest.approx(total_mib, rel=0.01)
        assert 0 < one.used_bytes < one.total_bytes
