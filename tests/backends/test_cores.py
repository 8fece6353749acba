import os
from pathlib import Path

import pytest

from embedgrpc.backends.cores import available_cores


def _describe(folder: Path, siblings: dict[int, str]) -> Path:
    for processor, names in siblings.items():
        topology = folder / f"cpu{processor}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(names)
    return folder


@pytest.fixture
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on processors 0 to 3."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("siblings", "quota", "wanted"),
    [
        ({}, None, 4),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, None, 4),
        ({}, "max 100000", 4),
        ({}, "250000 100000", 3),
        ({}, "10000 100000", 1),
        ({}, "800000 100000", 4),
    ],
)
def test_available_cores(
    tmp_path: Path, siblings: dict[int, str], quota: str | None, wanted: int
) -> None:
    """Threads of one core count once, and a control group's quota is kept to."""
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota)
    assert available_cores(cpus=_describe(tmp_path, siblings), quota=path) == wanted


def test_available_cores_of_this_machine() -> None:
    """The answer lies between one and the processors that there are."""
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
