"""Several servers as one service. `python -m tests.replicas` runs the same for longer."""

from pathlib import Path

import pytest

from tests.envoy.conftest import envoy  # noqa: F401 - a fixture
from tests.replicas.storm import storm
from tests.replicas.trial import kill, reload, roll

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


async def test_a_roll_out_loses_no_call(tmp_path: Path) -> None:
    """Every server is restarted under load; a client that watches their health sees nothing."""
    done = await roll(tmp_path, restarts=2)
    assert (done.failed, done.exit_codes) == ({}, [0, 0])
    assert done.outcomes["OK"] > 100
    assert done.outcomes["STREAM_OK"] > 100


async def test_a_roll_out_behind_envoy_loses_no_call(tmp_path: Path, envoy: Path) -> None:  # noqa: F811 - the fixture
    """The same for a client that knows Envoy only."""
    done = await roll(tmp_path, restarts=2, envoy=envoy)
    assert (done.failed, done.exit_codes) == ({}, [0, 0])
    assert done.outcomes["OK"] > 100


async def test_reloads_behind_envoy_lose_no_call(tmp_path: Path, envoy: Path) -> None:  # noqa: F811 - the fixture
    """SIGHUP with another list of models: callers of the model that stays see nothing."""
    done = await reload(tmp_path, reloads=4, envoy=envoy)
    assert done.failed == {}
    assert done.outcomes["OK"] > 100


async def test_a_server_that_is_killed_costs_hardly_a_call(tmp_path: Path) -> None:
    """Kill -9 of one of two, again and again: retries find the other."""
    done = await kill(tmp_path, kills=3, pause_s=1)
    assert done.success >= 0.999, done.outcomes


async def test_retries_do_not_make_a_storm(tmp_path: Path, envoy: Path) -> None:  # noqa: F811 - the fixture
    """While every call fails, retries of client and Envoy together add a fifth at most."""
    for name, counts in (await storm(envoy, tmp_path, seconds=8)).items():
        assert counts.offered > 1000
        assert counts.amplification <= 1.2, (name, counts)
