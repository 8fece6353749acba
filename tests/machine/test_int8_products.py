"""How the CPU multiplies uint8 with int8."""

from pathlib import Path

import pytest

from embedgrpc.machine.int8_products import saturates


@pytest.mark.parametrize(
    ("flags", "saturating"),
    [
        ("fpu sse4_2 avx2", True),
        ("fpu avx2 avx512f avx512bw", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 avx_vnni", False),
        ("", True),
    ],
)
def test_x86(tmp_path: Path, flags: str, *, saturating: bool) -> None:
    """Only CPUs with VNNI add products in 32 bits."""
    path = tmp_path / "cpuinfo"
    path.write_text(
        f"processor\t: 0\nvmx flags\t: avx_vnni\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    )
    assert saturates(architecture="x86_64", cpuinfo=path) is saturating


def test_other_machines(tmp_path: Path) -> None:
    """ARM's products are exact; an x86 CPU that nobody describes may be an old one."""
    assert not saturates(architecture="aarch64", cpuinfo=tmp_path / "none")
    assert saturates(architecture="x86_64", cpuinfo=tmp_path / "none")
