"""What tests of several folders start."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedgrpc.backends.triton import circuit, pool
from tests.triton.environment import Environment, EnvironmentMissingError, find
from tests.triton.models import write_repository
from tests.triton.server import TritonServer


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use one process more than there are cores: tests wait for a third of their time."""
    del config
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all processes of this run keep graphs, so that each is built once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "graphs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def often_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check Triton servers more often: for tests that wait for a check, whenever it comes."""
    monkeypatch.setattr(circuit, "_WATCH_S", 0.1)
    monkeypatch.setattr(circuit, "_FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(circuit, "_LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(pool, "_ROUND_S", 0.02)


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """An installed tritonserver; the checks install it, elsewhere tests do without."""
    try:
        return find()
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


@pytest.fixture(scope="session")
def triton_repository(
    triton_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository with the models of `tests.triton.models`, not to be changed."""
    del triton_environment  # without it nothing would read what is written
    folder = tmp_path_factory.mktemp("triton")
    write_repository(folder / "repository", folder / "graphs")
    return folder / "repository"


@pytest.fixture(scope="session")
def triton_server(
    triton_environment: Environment, triton_repository: Path
) -> Iterator[TritonServer]:
    """A server with all those models, which every test leaves as it found it."""
    with TritonServer(triton_environment, triton_repository) as server:
        yield server
