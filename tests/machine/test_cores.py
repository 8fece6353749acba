import os
from pathlib import Path

import pytest

from embedgrpc.machine.cores import available_cores, has_quota


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


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


PODS = "0::/pods/pod"
V1 = "11:memory:/m\n4:cpu,cpuacct:/docker/c1\n0::/\n"


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("siblings", "membership", "files", "wanted"),
    [
        ({}, "0::/", {}, 4),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "0::/", {}, 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "0::/", {}, 4),
        ({}, "0::/", {"cpu.max": "max 100000"}, 4),
        ({}, "0::/", {"cpu.max": "250000 100000"}, 3),
        ({}, "0::/", {"cpu.max": "10000 100000"}, 1),
        ({}, "0::/", {"cpu.max": "800000 100000"}, 4),
        ({}, "", {"cpu.max": "100000 100000"}, 1),
        ({}, "nonsense", {"cpu.max": "0 0"}, 4),
        ({}, PODS, {"pods/pod/cpu.max": "200000 100000"}, 2),
        ({}, PODS, {"pods/cpu.max": "100000 100000", "pods/pod/cpu.max": "max 100000"}, 1),
        ({}, PODS, {"pods/other/cpu.max": "100000 100000"}, 4),
        (
            {},
            V1,
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            {},
            V1,
            {
                "cpu,cpuacct/docker/c1/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/docker/c1/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/docker/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/docker/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_available_cores(
    tmp_path: Path, siblings: dict[int, str], membership: str, files: dict[str, str], wanted: int
) -> None:
    """The threads of a core count once, and the quota of every parent control group applies."""
    groups = _write(tmp_path / "cgroup", files) if files else tmp_path
    _write(tmp_path, {"membership": membership})
    found = available_cores(
        cpus=_describe(tmp_path, siblings), cgroups=groups, membership=tmp_path / "membership"
    )
    assert found == wanted


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("quota", "wanted"), [("max 100000", 0), ("400000 100000", 0), ("2000 1000", 1)]
)
def test_a_quota_leaves_less_than_all_cores(tmp_path: Path, quota: str, wanted: int) -> None:
    """One that is as large as the machine takes nothing away."""
    groups = _write(tmp_path / "cgroup", {"cpu.max": quota})
    membership = _write(tmp_path, {"membership": "0::/"}) / "membership"
    assert has_quota(cpus=tmp_path, cgroups=groups, membership=membership) == wanted


def test_available_cores_of_this_machine() -> None:
    """The result lies between one and the number of processors."""
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
