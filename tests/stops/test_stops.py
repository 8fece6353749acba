from pathlib import Path

import pytest

from tests.stops.trial import stop_under_load

pytestmark = pytest.mark.long


@pytest.mark.parametrize("pause_ms", [0.0, 10.0], ids=["at-once", "after-a-pause"])
async def test_no_call_is_lost(pause_ms: float, tmp_path: Path) -> None:
    """Each call without retries is answered or gets UNAVAILABLE; none is lost."""
    stop = await stop_under_load(callers=24, pause_ms=pause_ms, cache_dir=tmp_path)
    assert stop.exit_code == 0
    assert stop.outcomes.pop("OK") > 0
    assert stop.outcomes == {"UNAVAILABLE": 24}
