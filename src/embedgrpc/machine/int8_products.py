"""Finds out how the CPU multiplies uint8 with int8."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "AMD64"})
# As the kernel names the instructions that add four products to 32 bits at once.
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def saturates(*, architecture: str = "", cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether sums of two products of uint8 with int8 may overflow.

    x86 CPUs without VNNI add two products in 16 bits (VPMADDUBSW), and cut off what does not fit.
    ONNX Runtime uses this instruction there. It multiplies uint8 with uint8 in wider numbers.

    Args:
        architecture: The machine's, as `platform.machine` names it; empty to ask.
        cpuinfo: Where the kernel describes the processors. Without it, an x86 CPU counts as one
            that saturates.
    """
    if (architecture or platform.machine()) not in _X86:
        return False
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return not _VNNI & set(flags.split())
